"""A tree as an archive that the kernel unpacks (``newc``, cpio(5)), the same for the same files.

Names are in order, times are zero, everything is root's, and inodes are counted; nothing of the
machine that writes it is in it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_END = "TRAILER!!!"


def write_archive(tree: Path, file: BinaryIO) -> None:
    """Write all of *tree*: folders, regular files and symbolic links."""
    for number, path in enumerate(_paths(tree), 1):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            data, mode = os.fsencode(os.readlink(path)), stat.S_IFLNK | 0o777
        elif stat.S_ISDIR(status.st_mode):
            data, mode = b"", stat.S_IFDIR | 0o755
        elif stat.S_ISREG(status.st_mode):
            is_program = bool(status.st_mode & 0o100)
            data, mode = path.read_bytes(), stat.S_IFREG | (0o755 if is_program else 0o644)
        else:
            raise ValueError(f"{path} is no file, folder or link")
        _write_entry(file, number, str(path.relative_to(tree)), mode, data)
    _write_entry(file, 0, _END, 0, b"")


def _paths(tree: Path) -> list[Path]:
    return sorted(tree.rglob("*"), key=lambda path: os.fsencode(path.relative_to(tree)).split(b"/"))


def _write_entry(file: BinaryIO, number: int, name: str, mode: int, data: bytes) -> None:
    encoded = os.fsencode(name) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    # One by one: a compressor takes no lists.
    file.write(_padded(header + encoded))
    file.write(_padded(data))


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
