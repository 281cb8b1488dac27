"""Walks and reads a tree, timed: ``python reading.py walk|read FOLDER`` prints JSON.

The timed programs are find and cat: a reader in Python takes longer than the file systems that it
is to measure.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time


def walk(folder: str) -> dict[str, float]:
    """List every directory and lstat every entry: microseconds an entry."""
    command = ["find", folder, "-xdev", "-printf", r"%s\n"]
    start_s = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    passed_s = time.perf_counter() - start_s
    count = done.stdout.count(b"\n")
    return {"entries": count, "us_an_entry": passed_s * 1e6 / count}


def read(folder: str) -> dict[str, float]:
    """Read every regular file from beginning to end: MB/s, the walk left out."""
    paths, total = _regular_files(os.fsencode(folder))
    names = b"".join(path + b"\0" for path in sorted(paths))
    start_s = time.perf_counter()
    subprocess.run(["xargs", "-0", "cat", "--"], input=names, stdout=subprocess.DEVNULL, check=True)
    return {"bytes": total, "mb_per_s": total / (time.perf_counter() - start_s) / 1e6}


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
    print(json.dumps({"walk": walk, "read": read}[sys.argv[1]](sys.argv[2])))
