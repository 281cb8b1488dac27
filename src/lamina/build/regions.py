"""A file made of parts of another file, and bytes after them: a blob before it is pushed."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from lamina.errors import StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class RegionFile(io.RawIOBase):
    """Reads ``regions`` of the file ``fd``, each (offset, size) in bytes, and then ``tail``;
    seekable.

    The file stays the caller's to close.
    """

    def __init__(self, fd: int, regions: Sequence[tuple[int, int]], tail: bytes) -> None:
        super().__init__()
        self._fd = fd
        self._regions = [region for region in regions if region[1]]
        self._starts = list(accumulate((size for _, size in self._regions), initial=0))
        self._tail = memoryview(tail)
        self.size_bytes = self._starts[-1] + len(tail)
        self._position = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position in bytes and return it."""
        base = (0, self._position, self.size_bytes)[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes (all that is left if negative); b"" only at the end."""
        left = max(0, self.size_bytes - self._position)
        wanted = left if size < 0 else min(size, left)
        number = bisect_right(self._starts, self._position) - 1
        if number < len(self._regions) and self._position + wanted <= self._starts[number + 1]:
            # Within one region no buffer has to be filled first.
            offset = self._regions[number][0] + self._position - self._starts[number]
            data = os.pread(self._fd, wanted, offset)
            if len(data) == wanted:
                self._position += wanted
                return data
        buffer = bytearray(wanted)
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer as far as the bytes go."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            got = self._read_part(view[filled:])
            if not got:
                break
            filled += got
        return filled

    def _read_part(self, view: memoryview) -> int:
        position = self._position
        data_size = self._starts[-1]
        if position >= data_size:
            part = self._tail[position - data_size : position - data_size + len(view)]
            view[: len(part)] = part
            got = len(part)
        else:
            number = bisect_right(self._starts, position) - 1
            offset, size = self._regions[number]
            inside = position - self._starts[number]
            got = os.preadv(self._fd, [view[: size - inside]], offset + inside)
            if not got:
                raise StoreError("A temporary file of the conversion ends early.")
        self._position += got
        return got
