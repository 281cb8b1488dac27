"""A guest that reads a share until its host says that it is enough, and compares every byte.

``python tests/support/in_guest_share.py JSON``: ``{"tag": ..., "seed": ..., "small_files": ...,
"big_files": ...}``, of :func:`tests.faults.sample.contents_of`, of which the share has the first
version.  Talks with its host by the sectors of ``/dev/vdb``: the first has a byte that is not zero
when it is enough, the second gets the number of right reads so far.  Prints the counts.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
from collections import Counter
from pathlib import Path

from lamina.linux.mount import attach_mount, create_mount
from tests.faults.sample import contents_of

FOLDER = Path("/disk/share")
READ_BYTES = 64 << 10
TOLD_EVERY = 10


class Board:
    """The disk by which guest and host tell each other how far they are."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/vdb", os.O_RDWR | os.O_DIRECT)
        # Aligned, as direct I/O has it.
        self._sector = mmap.mmap(-1, mmap.PAGESIZE)

    def is_enough(self) -> bool:
        view = memoryview(self._sector)[:512]
        os.preadv(self._fd, [view], 0)
        return self._sector[0] != 0

    def tell(self, count: int) -> None:
        view = memoryview(self._sector)[:512]
        view[:8] = count.to_bytes(8, "little")
        os.pwritev(self._fd, [view], 512)


def read_one(chance: random.Random, files: dict[bytes, bytes]) -> str:
    """Read a part of a file, past the page cache of the guest as far as that can be."""
    name = chance.choice(sorted(files))
    offset = chance.randrange(max(1, len(files[name])))
    try:
        fd = os.open(FOLDER / os.fsdecode(name), os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            data = read_whole(fd, READ_BYTES, offset)
        finally:
            os.close(fd)
    except OSError:
        return "errors"
    return "right" if data == files[name][offset : offset + READ_BYTES] else "wrong"


def read_whole(fd: int, size: int, offset: int) -> bytes:
    """Read until the end; a read that fails behind its first pages is short, and the next fails."""
    data = b""
    while len(data) < size and (piece := os.pread(fd, size - len(data), offset + len(data))):
        data += piece
    return data


def main() -> int:
    """Read; the exit code says whether a byte was wrong."""
    wanted = json.loads(sys.argv[1])
    files = contents_of(wanted["seed"], 1, wanted["small_files"], wanted["big_files"])
    FOLDER.mkdir(parents=True)
    opened = create_mount("virtiofs", wanted["tag"], [("ro", None)])
    attach_mount(opened, str(FOLDER))
    os.close(opened)
    board, counts, chance = Board(), Counter[str](), random.Random(wanted["seed"])
    while not board.is_enough():
        for _ in range(TOLD_EVERY):
            counts[read_one(chance, files)] += 1
        board.tell(counts["right"])
    print(json.dumps(counts), flush=True)
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
