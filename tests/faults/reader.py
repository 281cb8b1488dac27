"""One reading process: ``reader.py MOUNTPOINT TREE TALLY SEED SECONDS``.

It reads files of the mount, whole and in part and in every way there is, after telling the kernel
to forget what it has of them, and compares every byte with the same file of the plain tree.  Wrong
bytes are told on standard output, one JSON object a line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence

if __name__ == "__main__":
    # Run as a file, so that it starts fast.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from tally import BY_WAY, IMPOSSIBLE, Tally
    from ways import WAYS, ImpossibleError
else:
    from tests.faults.tally import BY_WAY, IMPOSSIBLE, Tally
    from tests.faults.ways import WAYS, ImpossibleError

LARGEST_READ = 128 << 10
WHOLE = 0.15
"""Share of files that are read from begin to end: most of the bytes that are compared."""
AFTER_ERROR_S = 0.02
TOLD = 5


class Reader:
    """Reads until it is told to stop."""

    def __init__(self, mountpoint: str, tree: str, tally: Tally, seed: str) -> None:
        self.mountpoint = mountpoint
        self.tree = tree
        self.tally = tally
        self.chance = random.Random(f"reader {seed}")
        self.stopped = False
        self.told = 0
        self.ways = list(WAYS)
        self.files = sorted(
            os.path.relpath(os.path.join(folder, name), tree)
            for folder, _, names in os.walk(tree)
            for name in names
        )
        self.folders = sorted(os.path.relpath(folder, tree) for folder, _, _ in os.walk(tree))

    def run(self, seconds: float) -> None:
        """Read for so long."""
        end = time.monotonic() + seconds
        while not self.stopped and time.monotonic() < end:
            if self.chance.random() < 0.05:
                self.list_folder(self.chance.choice(self.folders))
            else:
                self.read_file(self.chance.choice(self.files))

    def mounted(self) -> bool:
        """Whether anything is mounted; what is broken counts as that."""
        try:
            outside = os.path.join(self.mountpoint, "..")
            return os.stat(self.mountpoint).st_dev != os.stat(outside).st_dev
        except OSError as error:
            return error.errno != errno.ENOENT

    def failed(self, error: OSError) -> None:
        """Count an error, unless there was nothing to read from."""
        if error.errno == errno.ENOENT and not self.mounted():
            self.tally.abandon()
        else:
            self.tally.end(code=error.errno or errno.EIO)
        time.sleep(AFTER_ERROR_S)

    def list_folder(self, name: str) -> None:
        """Compare the names in a folder."""
        self.tally.begin()
        try:
            found = sorted(os.listdir(os.path.join(self.mountpoint, name)))
        except OSError as error:
            self.failed(error)
            return
        expected = sorted(os.listdir(os.path.join(self.tree, name)))
        if found != expected and self.mounted():
            self.wrong(name, 0, repr(expected).encode(), repr(found).encode())
        elif found != expected:
            self.tally.abandon()
            time.sleep(AFTER_ERROR_S)
        else:
            self.tally.end()

    def read_file(self, name: str) -> None:
        """Open a file and read some of it, or all."""
        self.tally.begin()
        try:
            fd = os.open(os.path.join(self.mountpoint, name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.failed(error)
            return
        self.tally.abandon()
        plain = os.open(os.path.join(self.tree, name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.read_opened(name, fd, plain)
        finally:
            os.close(plain)
            # A FUSE connection may be gone; the descriptor is closed all the same.
            with contextlib.suppress(OSError):
                os.close(fd)

    def read_opened(self, name: str, fd: int, plain: int) -> None:
        size = os.fstat(plain).st_size
        if self.chance.random() < 0.8:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        for offset, length in self.parts(size):
            if self.stopped or not self.read_part((name, fd, plain), offset, length):
                return

    def parts(self, size: int) -> Sequence[tuple[int, int]]:
        """What to read: all of a file, or a few places of it."""
        if size <= LARGEST_READ // 8 or self.chance.random() < WHOLE:
            return [(start, LARGEST_READ) for start in range(0, size + 1, LARGEST_READ)]
        sizes = (1, 100, 4096, 4096, 5000, 16384, LARGEST_READ)
        return [
            (self.chance.randrange(size), self.chance.choice(sizes))
            for _ in range(self.chance.randrange(1, 8))
        ]

    def read_part(self, file: tuple[str, int, int], offset: int, length: int) -> bool:
        """Compare one range; False if it ended with an error."""
        name, fd, plain = file
        expected = os.pread(plain, length, offset)
        way = self.chance.choice(self.ways)
        self.tally.begin()
        found = b""
        while len(found) < len(expected):
            rest = offset + len(found), len(expected) - len(found), os.fstat(plain).st_size
            try:
                # What a read returns before the end of a file may be cut off by an error behind.
                more = WAYS[way](fd, *rest)
            except ImpossibleError:
                self.tally.count(IMPOSSIBLE + list(WAYS).index(way))
                self.ways.remove(way)
                way = self.ways[0]
                continue
            except OSError as error:
                if found != expected[: len(found)]:
                    self.wrong(name, offset, expected, found)
                else:
                    self.failed(error)
                return False
            if not more:
                break
            found += more
            self.tally.go_on()
        self.tally.count(BY_WAY + list(WAYS).index(way))
        if found != expected:
            self.wrong(name, offset, expected, found)
        else:
            self.tally.end(len(found))
        return True

    def wrong(self, name: str, offset: int, expected: bytes, found: bytes) -> None:
        """Count wrong bytes, and tell the first few."""
        self.tally.end(wrong=True)
        self.told += 1
        if self.told > TOLD:
            return
        pairs = enumerate(zip(expected, found, strict=False))
        at = next((n for n, (a, b) in pairs if a != b), min(len(expected), len(found)))
        facts = {
            "file": name,
            "offset": offset + at,
            "expected": expected[at : at + 32].hex(),
            "found": found[at : at + 32].hex(),
            "zeros": bool(found) and not any(found[at:]),
            "lengths": [len(expected), len(found)],
        }
        print(json.dumps(facts), flush=True)


def main() -> None:
    """Read; the arguments are in the module's text."""
    mountpoint, tree, tally, seed, seconds = sys.argv[1:]
    reader = Reader(mountpoint, tree, Tally(tally), seed)

    def stop(_number: int, _frame: object) -> None:
        reader.stopped = True

    signal.signal(signal.SIGTERM, stop)
    reader.run(float(seconds))


if __name__ == "__main__":
    main()
