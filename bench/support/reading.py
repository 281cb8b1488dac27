"""Walks and reads a tree, timed: ``python reading.py walk|read FOLDER`` prints JSON.

Run as a program of its own, so that nothing but the tree is in the measurement.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time

BUFFER_BYTES = 1 << 20


def walk(folder: str) -> dict[str, float]:
    """List every directory and lstat every entry: microseconds an entry."""
    start_s = time.perf_counter()
    count = 0
    stack = [folder]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                status = os.lstat(entry.path)
                count += 1
                if stat.S_ISDIR(status.st_mode):
                    stack.append(entry.path)
    return {"entries": count, "us_an_entry": (time.perf_counter() - start_s) * 1e6 / count}


def read(folder: str) -> dict[str, float]:
    """Read every regular file from beginning to end: MB/s, the walk left out."""
    paths = sorted(_regular_files(folder))
    buffer = bytearray(BUFFER_BYTES)
    total = 0
    start_s = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while count := os.readv(fd, [buffer]):
            total += count
        os.close(fd)
    return {"bytes": total, "mb_per_s": total / (time.perf_counter() - start_s) / 1e6}


def _regular_files(folder: str) -> list[str]:
    found = []
    for here, _, names in os.walk(folder):
        paths = (os.path.join(here, name) for name in names)
        found += [path for path in paths if stat.S_ISREG(os.lstat(path).st_mode)]
    return found


if __name__ == "__main__":
    print(json.dumps({"walk": walk, "read": read}[sys.argv[1]](sys.argv[2])))
