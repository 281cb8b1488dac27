"""Walks and reads a tree, timed: ``python reading.py walk|read|read-bare FOLDER`` prints JSON.

What is timed should take less time than the file systems that it measures: find walks, and files
are read into one buffer by system calls (3 GB/s of small files from the page cache, where cat comes
to 1.1).  They are those of programs that read whole files: open, fstat for the size, read to the
end, close.  FUSE may have to ask its server for what fstat wants to know; the bare way leaves that
out.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable

READ_BYTES = 128 << 10


def walk(folder: str) -> dict[str, float]:
    """List every directory and lstat every entry: microseconds an entry."""
    command = ["find", folder, "-xdev", "-printf", r"%s\n"]
    start_s = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    passed_s = time.perf_counter() - start_s
    count = done.stdout.count(b"\n")
    return {"entries": count, "us_an_entry": passed_s * 1e6 / count}


def read(folder: str) -> dict[str, float]:
    """Read every regular file as a program does that wants all of it: MB/s, the walk left out."""
    return _read(folder, os.fstat)


def read_bare(folder: str) -> dict[str, float]:
    """The same without asking for its size."""
    return _read(folder, lambda _: None)


def _read(folder: str, look_at: Callable[[int], object]) -> dict[str, float]:
    paths, total = _regular_files(os.fsencode(folder))
    paths.sort()
    buffers = [bytearray(READ_BYTES)]
    open_file, readv, close = os.open, os.readv, os.close
    found = 0
    start_s = time.perf_counter()
    for path in paths:
        fd = open_file(path, os.O_RDONLY)
        look_at(fd)
        while count := readv(fd, buffers):
            found += count
        close(fd)
    passed_s = time.perf_counter() - start_s
    assert found == total, f"{found} bytes were read of {total}"
    return {"bytes": total, "mb_per_s": total / passed_s / 1e6}


def _regular_files(folder: bytes) -> tuple[list[bytes], int]:
    found = []
    total = 0
    for here, _, names in os.walk(folder):
        for path in (os.path.join(here, name) for name in names):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.append(path)
                total += status.st_size
    return found, total


if __name__ == "__main__":
    ways = {"walk": walk, "read": read, "read-bare": read_bare}
    print(json.dumps(ways[sys.argv[1]](sys.argv[2])))
