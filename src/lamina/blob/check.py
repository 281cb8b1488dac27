"""Verifies a chunk table completely."""

from __future__ import annotations

from lamina.blob.table import ChunkTable
from lamina.erofs.layout import BlobFeature, round_up
from lamina.errors import FormatError


def check_table(table: ChunkTable) -> None:
    """Verify every record of a chunk table: order, bounds, no gaps, whole batches.

    Raises FormatError: names the chunk or piece.
    """
    where = f"chunk table of blob {table.blob_id}"
    address = 0
    gaps = bool(table.entry.features & (BlobFeature.ZRAN | BlobFeature.SEPARATE))
    for chunk in range(table.chunk_count):
        offset, size = table.chunk_extent(chunk)
        if offset < address or (offset > address and not gaps):
            raise FormatError(f"{where}: chunk {chunk} begins at {offset}, not {address}")
        address = round_up(offset + size, 4096)
    if not gaps and address != table.uncompressed_size:
        raise FormatError(f"{where}: its chunks end at {address}, not {table.uncompressed_size}")
    end = 0
    for piece in table.pieces():
        if gaps:
            continue
        if piece.offset < end:
            raise FormatError(f"{where}: piece {piece.index} overlaps the one before it")
        end = piece.offset + piece.size
        filled = 0
        for chunk in range(piece.first, piece.first + piece.count):
            if piece.count > 1 and table.offset_in_piece(chunk) != filled:
                raise FormatError(f"{where}: chunk {chunk} is not where its batch continues")
            filled += table.chunk_extent(chunk)[1]
        if filled != piece.raw_size:
            raise FormatError(f"{where}: piece {piece.index} has {piece.raw_size} bytes")
