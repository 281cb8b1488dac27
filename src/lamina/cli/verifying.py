"""Reading every piece of a blob from its source, past the node store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from lamina.blob.decode import decode_piece
from lamina.image.whole_layer import decode_whole

if TYPE_CHECKING:
    from lamina.blob.table import Piece
    from lamina.image.lazy_blob import LazyBlob

SPAN_BYTES: Final = 8 << 20


def verify_blob(blob: LazyBlob, advance: Callable[[int], None]) -> int:
    """Fetch, decode and verify all pieces of a blob; return the plain bytes.

    Nothing is read from the store or written to it; memory stays below a few spans of 8 MiB.
    Raises IntegrityError that names the chunk, FormatError, FetchError.
    """
    total_bytes = 0
    if blob.is_read_whole:
        pieces = decode_whole(blob.table, blob.digests, blob.source, lambda _: None)
        for plain in (plain for _, chunks in pieces for _, plain in chunks):
            total_bytes += len(plain)
            advance(len(plain))
        return total_bytes
    for span in _spans(blob):
        start = span[0].offset
        stored = memoryview(
            blob.source.read_range(blob.blob_id, start, span[-1].offset + span[-1].size - start)
        )
        for piece in span:
            part = stored[piece.offset - start : piece.offset - start + piece.size]
            for _, plain in decode_piece(blob.table, piece, part, blob.digests, blob.blob_id):
                total_bytes += len(plain)
                advance(len(plain))
    return total_bytes


def _spans(blob: LazyBlob) -> Iterator[list[Piece]]:
    """Neighbouring pieces, up to 8 MiB together."""
    span: list[Piece] = []
    for piece in blob.table.pieces():
        if span:
            last = span[-1]
            adjacent = piece.offset <= last.offset + last.size
            if not adjacent or piece.offset + piece.size - span[0].offset > SPAN_BYTES:
                yield span
                span = []
        span.append(piece)
    if span:
        yield span
