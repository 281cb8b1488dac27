"""Writing a disk out as a file: sparse, the same at every time, and read again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from lamina.block.base import READ_BYTES, Disk
from lamina.errors import IntegrityError
from lamina.posix.file_space import forget_pages
from lamina.posix.write import write_all
from lamina.store.files import replacing

_ZERO_BYTES: Final = 64 << 10
"""Zeros of this size and at such an offset are left out of the file."""

_ZEROS: Final = bytes(_ZERO_BYTES)


class Exported(NamedTuple):
    """A disk that was written; ``sha256`` is of the whole file."""

    size_bytes: int
    written_bytes: int
    """Without what was left out because it is zeros."""
    sha256: bytes


Progress = Callable[[int], None]
"""Told how many more bytes of the disk are done."""


def export_disk(disk: Disk, path: Path, progress: Progress = lambda _: None) -> Exported:
    """Write *disk* to *path*, in place of a file that is there, which stays if this fails.

    What was written is read again from the file before that has its name.  Raises IntegrityError
    if it is other than what was read of the disk, OSError for the file, and what reading the disk
    raises.
    """
    with replacing(path) as fd:
        os.ftruncate(fd, disk.size_bytes)
        expected = hashlib.sha256()
        written = _write(fd, disk, expected.update, progress)
        # Flushed and forgotten, so that what is read comes from the disk.
        os.fsync(fd)
        forget_pages(fd, 0, 0)
        with open(fd, "rb", closefd=False) as file:
            found = hashlib.file_digest(file, "sha256")
        if found.digest() != expected.digest():
            raise IntegrityError(f"what was written to {path} is not what can be read of it")
        return Exported(disk.size_bytes, written, expected.digest())


def _write(fd: int, disk: Disk, note: Callable[[memoryview], object], progress: Progress) -> int:
    """Write what is not zeros, tell *note* everything, and return how much was written."""
    written = 0
    buffer = memoryview(bytearray(READ_BYTES))
    for offset in range(0, disk.size_bytes, READ_BYTES):
        part = buffer[: disk.size_bytes - offset]
        count = disk.read_into(offset, part)
        if count != len(part):
            raise IntegrityError(f"the disk ends at {offset + count}, before its end")
        note(part)
        for start in range(0, count, _ZERO_BYTES):
            piece = part[start : start + _ZERO_BYTES]
            if piece != _ZEROS[: len(piece)]:
                write_all(fd, piece, offset + start)
                written += len(piece)
        progress(count)
    return written
