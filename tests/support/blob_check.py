"""Verifies a data blob against its bootstrap: sections, tables, and every chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.blob.check import check_table
from lamina.blob.decode import decode_piece
from lamina.blob.framing import read_sections
from lamina.blob.layout import (
    CI_HEADER_SIZE,
    SECTION_DATA,
    SECTION_TABLE,
    TAR_BLOCK,
)
from lamina.blob.table import ChunkTable
from lamina.blob.toc import ReadAt, read_entry, read_toc
from lamina.erofs.chunk_digests import DigestSource
from lamina.erofs.layout import BlobEntry, BlobFeature
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MAX_SECTION = 1 << 30


def check_blob(
    entry: BlobEntry,
    digests: DigestSource,
    read_at: ReadAt,
    blob_size: int,
    meta: Buffer | None = None,
) -> int:
    """Verify the blob that ``entry`` describes; ``read_at`` reads its file of ``blob_size`` bytes.

    ``meta`` is its ``.blob.meta`` file, which must then say the same as the table in the blob.
    Returns the number of plaintext bytes that were verified.

    Raises:
        FormatError: names the section, record or piece that is not as it must be.
        IntegrityError: names the chunk that has not the promised bytes.
        UnsupportedError: the blob is encrypted, or a gzip stream or tar with its table elsewhere.
    """
    if entry.features & BlobFeature.HAS_TAR_HEADER:
        _check_sections(entry, read_at, blob_size)
    if entry.features & BlobFeature.HAS_TOC:
        _check_toc(entry, read_at, blob_size)
    size = entry.ci_compressed_size + CI_HEADER_SIZE
    if entry.ci_offset + size > blob_size:
        raise FormatError(f"blob {entry.blob_id}: its chunk table lies behind the end")
    table = ChunkTable.from_stored(read_at(entry.ci_offset, size), entry)
    if meta is not None and bytes(meta) != table.to_meta():
        raise FormatError(f"blob {entry.blob_id}: its chunk table is not the one in the image")
    check_table(table)
    return check_data(table, digests, read_at)


def check_data(table: ChunkTable, digests: DigestSource, read_at: ReadAt) -> int:
    """Read and verify every piece; return the number of plaintext bytes that a file refers to."""
    verified = 0
    for piece in table.pieces():
        stored = read_at(piece.offset, piece.size)
        for _, data in decode_piece(table, piece, stored, digests, table.blob_id):
            verified += len(data)
    return verified


def _check_sections(entry: BlobEntry, read_at: ReadAt, blob_size: int) -> None:
    sections = read_sections(read_at, blob_size)
    table, data = sections.get(SECTION_TABLE), sections.get(SECTION_DATA)
    expected = entry.ci_offset, entry.ci_compressed_size + CI_HEADER_SIZE
    if table is None or (table.offset, table.size) != expected:
        raise FormatError(f"blob {entry.blob_id}: its chunk table is not where it is said to be")
    if entry.features & BlobFeature.SEPARATE:
        return
    if data is None or data.offset + data.size + TAR_BLOCK != entry.ci_offset:
        raise FormatError(f"blob {entry.blob_id}: the chunk table does not follow the data")


def _check_toc(entry: BlobEntry, read_at: ReadAt, blob_size: int) -> None:
    toc = read_toc(read_at, blob_size, entry)
    if toc is None:
        raise FormatError(f"blob {entry.blob_id}: the table of contents is missing")
    for item in toc:
        # The digest of the data section covers its tar header too, so it tells nothing (RAFS v6
        # §2.7).
        if item.name != SECTION_DATA:
            read_entry(read_at, blob_size, item, _MAX_SECTION)
