"""A regular file of an image as a raw binary stream."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Final, Protocol

from lamina.image.base import Stat, shown
from lamina.image.errors import FileKindError, IsDirectoryError

if TYPE_CHECKING:
    from typing_extensions import Buffer


READALL_BYTES: Final = 16 << 20


class Readable(Protocol):
    """What an :class:`ImageFile` reads from."""

    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read a part of a regular file."""


def require_file(stat: Stat) -> None:
    """Raise IsDirectoryError or FileKindError unless *stat* is a regular file."""
    if stat.is_dir:
        raise IsDirectoryError(f"{shown(stat.path)} is a directory, not a file")
    if not stat.is_file:
        raise FileKindError(f"{shown(stat.path)} is not a regular file, so it has no content")


class ImageFile(io.RawIOBase):
    """Reads through ``pread`` and keeps only a position: closing it leaves the image open.

    Unbuffered; :meth:`lamina.image.base.Image.open` wraps it in an :class:`io.BufferedReader`.
    """

    def __init__(self, image: Readable, stat: Stat) -> None:
        super().__init__()
        require_file(stat)
        self._image = image
        self._stat = stat
        self._position = 0
        self.name = shown(stat.path)

    mode = "rb"

    def readable(self) -> bool:
        """Report that the stream can be read."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Report that the stream can be positioned."""
        self._check_open()
        return True

    def readinto(self, buffer: Buffer) -> int:
        """Fill *buffer* from the current position; returns the count, 0 at the end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        data = self._image.pread(self._stat, self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Return all from the current position on, fetching over several connections."""
        self._check_open()
        parts: list[bytes] = []
        while part := self._image.pread(self._stat, self._position, READALL_BYTES):
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; beyond the end is allowed and reads nothing there."""
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stat.size}
        if whence not in base:
            raise ValueError(f"whence {whence} is none of SEEK_SET, SEEK_CUR and SEEK_END")
        position = base[whence] + offset
        if position < 0:
            raise ValueError(f"position {position} lies before the start of {self.name}")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position."""
        self._check_open()
        return self._position

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name} is closed")
