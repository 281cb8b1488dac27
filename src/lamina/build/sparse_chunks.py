"""Chunks of sparse files, which a tar stream does not have in one piece.

Where a copy of the stream is kept, they are put together far behind the place where the stream can
end; those of nothing but zeros are holes there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from lamina.archive.blocks import BlockReader
from lamina.archive.sparse import Segment
from lamina.archive.tar import Entry
from lamina.errors import FormatError
from lamina.posix.write import write_all

BASE: Final = 1 << 42
"""Where in the spool the first of them is; a tar stream ends before it (``MAX_LAYER_BYTES``)."""

MAX_BYTES: Final = 1 << 40
"""Most bytes of chunks put together for one layer, holes of parts of chunks included."""

MAX_CHUNKS: Final = 1 << 20
"""Most chunks of the sparse files of one layer: a header of a few bytes may claim any number."""


class Chunk(NamedTuple):
    """A chunk of a file: its digest, its length in bytes, and its bytes in pieces; none if all of
    them are zero.  ``offset`` is its place in the stream, -1 if it is not there in one piece.
    """

    digest: bytes
    size: int
    pieces: Sequence[memoryview] = ()
    offset: int = -1


class SparseChunks:
    """Cuts the sparse files of one layer."""

    def __init__(self, chunk_size: int, start_digest: Callable[..., Any]) -> None:
        self._chunk_size = chunk_size
        self._start_digest = start_digest
        self._count = 0
        self._zeros: dict[int, Chunk] = {}

    def cut(self, reader: BlockReader, entry: Entry) -> Iterator[Chunk]:
        """Yield the chunks of a file whose data is next in ``reader``.

        Raises FormatError for more than can be kept.
        """
        self._count += -(-entry.size // self._chunk_size)
        if self._count > MAX_CHUNKS:
            raise FormatError(
                f"the sparse files of the layer have more than {MAX_CHUNKS} chunks",
                hint="choose a larger chunk size",
            )
        pending = list(entry.segments or ())[::-1]
        for start in range(0, entry.size, self._chunk_size):
            size = min(self._chunk_size, entry.size - start)
            if not pending or pending[-1].offset >= start + size:
                yield self._zero_chunk(size)
            elif pending[-1].offset <= start and _end(pending[-1]) >= start + size:
                yield self._whole_chunk(reader, size)
                _drop_before(pending, start + size)
            else:
                yield self._mixed_chunk(reader, pending, start, size)

    def _whole_chunk(self, reader: BlockReader, size: int) -> Chunk:
        offset = reader.offset
        pieces = list(reader.pieces(size))
        state = self._start_digest()
        for piece in pieces:
            state.update(piece)
        return Chunk(state.digest(), size, pieces, offset)

    def _zero_chunk(self, size: int) -> Chunk:
        if size not in self._zeros:
            self._zeros[size] = Chunk(self._start_digest(bytes(size)).digest(), size)
        return self._zeros[size]

    def _mixed_chunk(
        self, reader: BlockReader, pending: list[Segment], start: int, size: int
    ) -> Chunk:
        plain = bytearray(size)
        while pending and pending[-1].offset < start + size:
            at = max(pending[-1].offset, start) - start
            length = min(_end(pending[-1]) - start, size) - at
            plain[at : at + length] = b"".join(reader.pieces(length))
            _drop_before(pending, start + at + length)
            if at + length == size:
                break
        return Chunk(self._start_digest(plain).digest(), size, [memoryview(plain)])


class SpooledChunks:
    """Puts chunks behind the copy of a stream, which is the file ``fd``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = BASE
        self._zeros: dict[int, int] = {}

    def place(self, chunk: Chunk) -> int:
        """Return where in the file a chunk is, after it was written there if it is not in the
        stream.

        Raises FormatError if there is no more room.
        """
        if chunk.offset >= 0:
            return chunk.offset
        if not chunk.pieces:
            if chunk.size not in self._zeros:
                self._zeros[chunk.size] = self._make_room(chunk.size)
            return self._zeros[chunk.size]
        place = self._make_room(chunk.size)
        for piece in chunk.pieces:
            write_all(self._fd, piece, place)
        return place

    def _make_room(self, size: int) -> int:
        place = self._end
        self._end += size
        if self._end > BASE + MAX_BYTES:
            raise FormatError(f"the sparse files of the layer have more than {MAX_BYTES} bytes")
        os.ftruncate(self._fd, self._end)
        return place


def _end(segment: Segment) -> int:
    return segment.offset + segment.size


def _drop_before(pending: list[Segment], end: int) -> None:
    """Take off what of the next segment lies before ``end``."""
    offset, size = pending.pop()
    if offset + size > end:
        pending.append(Segment(end, offset + size - end))
