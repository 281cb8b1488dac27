"""A file of the store for bytes that are needed for a while: its space is taken at once.

It has a name, so that the budget counts it, and loses it when it is closed; `lamina gc` removes
what a killed process left.  Whoever has it open can go on when it was removed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, cast

from lamina.posix.file_space import reserve
from lamina.store.files import FILE_MODE


class _NamedFile(io.FileIO):
    """Is removed when it is closed."""

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd, "r+b")
        self._path = path

    def close(self) -> None:
        if not self.closed:
            self._path.unlink(missing_ok=True)
        super().close()


def reserved_file(folder: Path, size_bytes: int) -> BinaryIO:
    """Return a file of *size_bytes* zeros in *folder*, open for reading and writing.

    Raises OSError, ENOSPC if there is no room for it.
    """
    path = folder / f".spool.{os.getpid()}.{os.urandom(8).hex()}"
    fresh = path.with_name(f"{path.name}.new")
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        reserve(fd, size_bytes)
        # Who counts a folder does it again when its entries change: now, with the space taken.
        os.rename(fresh, path)
    except BaseException:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        raise
    return cast("BinaryIO", _NamedFile(fd, path))
