"""Chunks of sparse files, which a tar stream does not have in one piece.

They are put together in the spool, far behind the place where the stream can end: only their data
is written there, so that the spool has the same holes as the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from lamina.archive.blocks import BlockReader
from lamina.archive.sparse import Segment
from lamina.archive.tar import Entry
from lamina.errors import FormatError
from lamina.store.files import write_all

BASE: Final = 1 << 42
"""Where in the spool the first of them is; a tar stream ends before it (``MAX_LAYER_BYTES``)."""

MAX_BYTES: Final = 1 << 40
"""Most bytes of chunks put together for one layer, holes of parts of chunks included."""

MAX_CHUNKS: Final = 1 << 20
"""Most chunks of the sparse files of one layer: a header of a few bytes may claim any number."""


class Chunk(NamedTuple):
    """A chunk of a file: its digest, where in the spool it is, and its length in bytes."""

    digest: bytes
    offset: int
    size: int


class SparseChunks:
    """Cuts the sparse files of one layer."""

    def __init__(self, spool_fd: int, chunk_size: int, start_digest: Callable[..., Any]) -> None:
        self._fd = spool_fd
        self._chunk_size = chunk_size
        self._start_digest = start_digest
        self._end = BASE
        self._count = 0
        self._zeros: dict[int, Chunk] = {}

    def cut(self, reader: BlockReader, entry: Entry) -> Iterator[Chunk]:
        """Yield the chunks of a file whose data is next in ``reader``.

        Raises FormatError for more than can be kept.
        """
        self._count += -(-entry.size // self._chunk_size)
        if self._count > MAX_CHUNKS:
            raise FormatError(
                f"The sparse files of the layer have more than {MAX_CHUNKS} chunks.",
                hint="Choose a larger chunk size.",
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
        state = self._start_digest()
        for piece in reader.pieces(size):
            state.update(piece)
        return Chunk(state.digest(), offset, size)

    def _zero_chunk(self, size: int) -> Chunk:
        if size not in self._zeros:
            digest = self._start_digest(bytes(size)).digest()
            self._zeros[size] = Chunk(digest, self._make_room(size), size)
        return self._zeros[size]

    def _mixed_chunk(
        self, reader: BlockReader, pending: list[Segment], start: int, size: int
    ) -> Chunk:
        plain = bytearray(size)
        place = self._make_room(size)
        while pending and pending[-1].offset < start + size:
            at = max(pending[-1].offset, start) - start
            length = min(_end(pending[-1]) - start, size) - at
            data = b"".join(reader.pieces(length))
            plain[at : at + length] = data
            write_all(self._fd, data, place + at)
            _drop_before(pending, start + at + length)
            if at + length == size:
                break
        return Chunk(self._start_digest(plain).digest(), place, size)

    def _make_room(self, size: int) -> int:
        place = self._end
        self._end += size
        if self._end > BASE + MAX_BYTES:
            raise FormatError(f"The sparse files of the layer have more than {MAX_BYTES} bytes.")
        os.ftruncate(self._fd, self._end)
        return place


def _end(segment: Segment) -> int:
    return segment.offset + segment.size


def _drop_before(pending: list[Segment], end: int) -> None:
    """Take off what of the next segment lies before ``end``."""
    offset, size = pending.pop()
    if offset + size > end:
        pending.append(Segment(end, offset + size - end))
