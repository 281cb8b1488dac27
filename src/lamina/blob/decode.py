"""Stored bytes of a piece -> verified plaintext of its chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.blob.layout import CHUNK_ZRAN
from lamina.blob.table import ChunkTable, Piece
from lamina.codec.compress import Compressor, decompress
from lamina.codec.deflate_span import inflate_span
from lamina.codec.digest import Digester, digest
from lamina.codec.zstd_span import decode_frames
from lamina.erofs.chunk_digests import DigestSource
from lamina.errors import FormatError, IntegrityError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def decode_piece(
    table: ChunkTable, piece: Piece, stored: Buffer, digests: DigestSource, blob_id: str
) -> list[tuple[int, memoryview]]:
    """Return (chunk number, plaintext) of every chunk of a piece that a file refers to.

    Each plaintext has the digest, and its place in the blob's uncompressed space is the one, that
    the bootstrap says: a chunk table from an untrusted source can neither change bytes nor move
    them.  Chunks that no file refers to have no digest, and are left out.

    Raises IntegrityError: names the blob, the chunk and the offset where the promise is broken;
    FetchError: the window that a split table lacks does not come; or what else fetching raises.
    """
    view = memoryview(stored).cast("B")
    if len(view) != piece.size:
        raise IntegrityError(
            f"{_where(blob_id, piece, piece.first)}: {len(view)} bytes instead of {piece.size}"
        )
    view = table.opened(piece, view)
    if piece.compressed:
        try:
            plain = _decompress(table, piece, view)
        except (FormatError, IntegrityError, UnsupportedError) as error:
            where = _where(blob_id, piece, piece.first)
            raise IntegrityError(f"{where}: {error}", hint=_HINT) from error
        view = memoryview(plain)
    kind = Digester(table.entry.digester)
    chunks = []
    for chunk in range(piece.first, piece.first + piece.count):
        start, extent = table.offset_in_piece(chunk), table.chunk_extent(chunk)
        data = view[start : start + extent[1]]
        known, problem = _verify(kind, chunk, extent, data, digests)
        if problem:
            raise IntegrityError(f"{_where(blob_id, piece, chunk)}: {problem}", hint=_HINT)
        if known:
            chunks.append((chunk, data))
    return chunks


def _decompress(table: ChunkTable, piece: Piece, view: memoryview) -> bytes:
    compressor = Compressor(table.entry.compressor)
    if not table.chunk_flags(piece.first) & CHUNK_ZRAN:
        return decompress(compressor, view, piece.raw_size)
    if compressor == Compressor.ZSTD:
        return decode_frames(view, piece.raw_size)
    context = table.zran_contexts[table.zran_context_of(piece.first)]
    window = table.zran_dictionary(context)
    return inflate_span(view, context.bits, context.byte, window, piece.raw_size)


_HINT = "the source delivered damaged or forged data; nothing of it was used"


def _verify(
    kind: Digester, chunk: int, extent: tuple[int, int], data: memoryview, digests: DigestSource
) -> tuple[bool, str]:
    """Return whether the bootstrap knows the chunk, and in what it contradicts the chunk table or
    the data.
    """
    offset, size = extent
    expected = digests.find(chunk)
    if len(data) != size:
        return False, "it reaches out of its batch."
    if expected is None:
        overlaps = digests.overlaps(offset, size)
        return False, "the chunk table puts it over another chunk." if overlaps else ""
    there = expected.uncompressed_offset, expected.uncompressed_size
    if there != extent:
        return True, (
            f"the chunk table has {size} bytes at {offset}, the bootstrap {there[1]} at {there[0]}."
        )
    return True, "" if digest(kind, data) == expected.digest else "wrong digest."


def _where(blob_id: str, piece: Piece, chunk: int) -> str:
    return f"blob {blob_id}, chunk {chunk}, {piece.size} bytes at offset {piece.offset}"
