"""Decode a zstd stream and note where its frames begin.

A frame needs nothing of what comes before it, so its begin is an access point.  A stream of one
frame has a single point: whoever wants the end of it decodes all of it.  Source: RFC 8878 §3.1.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, cast

from lamina.archive.access_points import AccessPoint, PointMap
from lamina.archive.stream import _Input, _ZstdDecoder


class _Source(io.RawIOBase):
    """Turns a function that returns pieces into a file, and counts what it gave."""

    def __init__(self, read_input: Callable[[], bytes]) -> None:
        self._read_input = read_input
        self._rest = memoryview(b"")
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes: what a frame leaves of them is moved for the next one."""
        if not self._rest:
            self._rest = memoryview(self._read_input())
        data = bytes(self._rest[:size] if size >= 0 else self._rest)
        self._rest = self._rest[len(data) :]
        self.count += len(data)
        return data


class _Frames(_ZstdDecoder):
    """A decoder that reports the end of every frame, and the begin of the next one if there is
    one.
    """

    def __init__(self, source: _Input, boundary: Callable[[bool], None]) -> None:
        super().__init__(source)
        self._boundary = boundary

    def _next_frame(self) -> bool:
        self._boundary(False)
        found = super()._next_frame()
        if found:
            self._boundary(True)
        return found


class ZstdPoints:
    """A zstd stream that is read once; every frame is a point in :attr:`map`."""

    compression = "zstd"

    def __init__(self, read_input: Callable[[], bytes]) -> None:
        self.map = PointMap()
        self._source = _Source(read_input)
        self._input = _Input(cast("BinaryIO", self._source))
        self._decoder = _Frames(self._input, self._note)
        self._out = 0

    @property
    def in_offset(self) -> int:
        """Compressed bytes consumed."""
        return self._source.count - len(self._input.pending)

    def read(self, size: int = 1 << 20, /) -> bytes:
        """Return the next decompressed bytes; b"" only at the end.  Raises FormatError."""
        data = self._decoder.read(size)
        self._out += len(data)
        return data

    def _note(self, is_begin: bool) -> None:
        # The decoder opens a frame only when it has given out all of the one before.  Frames that
        # are skipped, such as a table of contents, may lie between.
        self.map.add(self.in_offset, self._out)
        if is_begin:
            self.map.add_point(AccessPoint(self.in_offset, self._out))

    def close(self) -> None:
        """Nothing stays open."""
