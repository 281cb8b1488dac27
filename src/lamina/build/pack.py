"""Third phase of a conversion: compress the pieces of a segment from the spool into the layer's
packed file.
"""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING, NamedTuple

from lamina.codec.compress import Compressor, compress
from lamina.errors import StoreError

if TYPE_CHECKING:
    from lamina.build.sealing import SegmentSeal

WINDOW_BYTES = 4 << 20
WRITE_BYTES = 2 << 20
MAX_WRITE_BUFFERS = 1024


class Segment(NamedTuple):
    """Neighbouring pieces that one task compresses; offsets and sizes in bytes.

    ``chunk_offsets`` and ``chunk_sizes`` are those of the member chunks in the tar stream,
    ``piece_counts`` how many of them make each piece, the first of which is ``first_piece`` of the
    blob.  The stored pieces go to ``packed_offset`` of the layer's packed file, where as much room
    is left as they can take.
    """

    packed_offset: int
    chunk_offsets: array[int]
    chunk_sizes: array[int]
    piece_counts: array[int]
    first_piece: int = 0


class SpoolWindow:
    """Views of a spool file through one buffer, refilled where a view begins after it.

    A view is valid until the next one is asked for.
    """

    def __init__(self, fd: int, end: int) -> None:
        self._fd = fd
        self._end = end
        self._buffer = bytearray(WINDOW_BYTES)
        self._start = self._filled = 0

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """Return ``size_bytes`` at ``offset``; members of a pack may lie before the window and are
        read alone.
        """
        if offset < self._start or size_bytes > WINDOW_BYTES:
            return memoryview(_pread(self._fd, offset, size_bytes))
        if offset + size_bytes > self._start + self._filled:
            wanted = max(size_bytes, min(WINDOW_BYTES, self._end - offset))
            self._start = offset
            self._filled = _preadv(self._fd, memoryview(self._buffer)[:wanted], offset, size_bytes)
        start = offset - self._start
        return memoryview(self._buffer)[start : start + size_bytes]


def pack_segment(
    segment: Segment,
    spool_fd: int,
    packed_fd: int,
    compressor: Compressor,
    level: int | None,
    seal: SegmentSeal | None = None,
) -> array[int]:
    """Compress the pieces of a segment, write them one after the other, sealed if they are to be,
    and return their compressed sizes in bytes.

    A piece whose size did not shrink is kept as it is.  Raises StoreError if the temporary files
    fail.
    """
    offsets, sizes = segment.chunk_offsets, segment.chunk_sizes
    end = max(map(int.__add__, offsets, sizes))
    window = SpoolWindow(spool_fd, end)
    sizes_packed = array("I")
    pending: list[bytes] = []
    position = segment.packed_offset
    pending_bytes = chunk = 0
    for count in segment.piece_counts:
        plain: memoryview | bytearray
        if count == 1:
            plain = window.view(offsets[chunk], sizes[chunk])
        else:
            plain = bytearray()
            for member in range(chunk, chunk + count):
                plain += window.view(offsets[member], sizes[member])
        chunk += count
        stored = b"" if compressor == Compressor.NONE else compress(compressor, plain, level)
        if not 0 < len(stored) < len(plain):
            stored = bytes(plain)
        sizes_packed.append(len(stored))
        if seal is not None:
            stored = seal.seal(stored, len(plain))
        pending.append(stored)
        pending_bytes += len(stored)
        if pending_bytes >= WRITE_BYTES or len(pending) == MAX_WRITE_BUFFERS:
            position = _pwrite(packed_fd, pending, position)
            pending, pending_bytes = [], 0
    _pwrite(packed_fd, pending, position)
    return sizes_packed


def _pread(fd: int, offset: int, size_bytes: int) -> bytes:
    data = os.pread(fd, size_bytes, offset)
    if len(data) != size_bytes:
        raise StoreError("A temporary file of the conversion ends early.")
    return data


def _preadv(fd: int, view: memoryview, offset: int, least: int) -> int:
    filled = 0
    while filled < len(view):
        got = os.preadv(fd, [view[filled:]], offset + filled)
        if not got:
            break
        filled += got
    if filled < least:
        raise StoreError("A temporary file of the conversion ends early.")
    return filled


def _pwrite(fd: int, buffers: list[bytes], offset: int) -> int:
    """Write buffers one after the other and return the offset behind them."""
    total = sum(map(len, buffers))
    written = os.pwritev(fd, buffers, offset) if buffers else 0
    while written < total:
        rest = memoryview(b"".join(buffers))[written:]
        written += os.pwrite(fd, rest, offset + written)
    return offset + total
