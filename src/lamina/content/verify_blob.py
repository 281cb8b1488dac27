"""Reading every piece of a blob from its source, past the node store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from lamina.blob.decode import decode_piece
from lamina.content.sequential_layer import decode_sequentially
from lamina.source.spans import plan_spans

if TYPE_CHECKING:
    from lamina.content.lazy_blob import LazyBlob

SPAN_BYTES: Final = 8 << 20


def verify_blob(blob: LazyBlob, advance: Callable[[int], None]) -> int:
    """Fetch, decode and verify all pieces of a blob; return the plain bytes.

    Nothing is read from the store or written to it; memory stays below a few spans of 8 MiB.
    Raises IntegrityError that names the chunk, FormatError, FetchError.
    """
    total_bytes = 0
    if blob.is_read_whole:
        pieces = decode_sequentially(blob.table, blob.digests, blob.source, lambda _: None)
        for plain in (plain for _, chunks in pieces for _, plain in chunks):
            total_bytes += len(plain)
            advance(len(plain))
        return total_bytes
    for span in plan_spans(blob.table.pieces(), bridge_bytes=0, span_bytes=SPAN_BYTES):
        stored = blob.source.read_range(blob.blob_id, span.offset, span.size)
        for piece in span.pieces:
            start = piece.offset - span.offset
            part = stored[start : start + piece.size]
            for _, plain in decode_piece(blob.table, piece, part, blob.digests, blob.blob_id):
                total_bytes += len(plain)
                advance(len(plain))
    return total_bytes
