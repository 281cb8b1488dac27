"""A layer that can be decoded only from its begin, such as one frame of zstd: its chunks, in order.

It is fetched range by range and decompressed as a stream, so memory is bounded by the window of the
compression and one chunk.  Every chunk is verified by its own digest, and the whole by that of the
layer when its end is reached.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, cast

from lamina.archive.blocks import BlockReader
from lamina.archive.stream import LayerStream
from lamina.blob.decode import decode_piece
from lamina.blob.table import ChunkTable, Piece
from lamina.erofs.chunk_digests import DigestSource
from lamina.errors import FormatError, IntegrityError
from lamina.source.fetcher import Fetcher

RANGE_BYTES: Final = 4 << 20
"""Compressed bytes of one request."""

Progress = Callable[[int], None]
"""Told the compressed bytes that arrived since the last call."""

DecodedPiece = tuple[Piece, list[tuple[int, memoryview]]]


class _LayerBytes(io.RawIOBase):
    """The compressed layer, hashed as it is read."""

    def __init__(self, table: ChunkTable, fetcher: Fetcher, progress: Progress) -> None:
        self._blob_id = table.blob_id
        self._size = table.entry.compressed_size
        self._fetcher = fetcher
        self._progress = progress
        self._hash = hashlib.sha256()
        self._position = 0
        self._range = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        if not self._range:
            self._range = self._fetch()
        taken = bytes(self._range[:size] if size >= 0 else self._range)
        self._range = self._range[len(taken) :]
        return taken

    def _fetch(self) -> memoryview:
        size = min(RANGE_BYTES, self._size - self._position)
        if not size:
            return memoryview(b"")
        data = self._fetcher.read_range(self._blob_id, self._position, size)
        self._hash.update(data)
        self._position += size
        self._progress(size)
        return data

    def check_end(self) -> None:
        """Read what is left and raise IntegrityError unless all is what the digest says."""
        while self._fetch():
            pass
        if self._hash.hexdigest() != self._blob_id:
            raise IntegrityError(
                f"layer sha256:{self._blob_id} has another digest, {self._hash.hexdigest()}",
                hint="the source delivered damaged or forged data",
            )


def _plain(layer: _LayerBytes) -> BinaryIO:
    return cast("BinaryIO", LayerStream(cast("BinaryIO", layer)))


def decode_sequentially(
    table: ChunkTable, digests: DigestSource, fetcher: Fetcher, progress: Progress
) -> Iterator[DecodedPiece]:
    """Yield every piece of the layer with its verified chunks, as
    :func:`lamina.blob.decode.decode_piece` returns them.

    Raises IntegrityError if the bytes are not the promised ones, FormatError if the chunk table
    does not follow the order of the layer, and what reading from *fetcher* raises.
    """
    with _LayerBytes(table, fetcher, progress) as layer:
        reader: BlockReader | None = None
        for chunk in range(table.chunk_count):
            piece = table.piece_holding(chunk)
            if piece.offset < (reader.offset if reader else 0):
                raise FormatError(
                    f"chunk table of blob {table.blob_id}: chunk {chunk} begins at {piece.offset}, "
                    "before the end of another"
                )
            try:
                reader = reader or BlockReader.over(_plain(layer))
                reader.skip(piece.offset - reader.offset)
                stored = b"".join(reader.pieces(piece.size))
            except FormatError as error:
                raise IntegrityError(
                    f"blob {table.blob_id}, chunk {chunk}: {error}", hint=error.hint
                ) from error
            yield piece, decode_piece(table, piece, stored, digests, table.blob_id)
        layer.check_end()
