"""Header and size of a chunk table, checked against the bootstrap (RAFS v6 §1.6, §2.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.blob.layout import (
    CI_HEADER,
    CI_HEADER_SIZE,
    CI_MAGIC,
    CONTEXT_SIZE,
    V1_RECORD_SIZE,
    V2_RECORD_SIZE,
    CiHeader,
)
from lamina.erofs.layout import BlobEntry, BlobFeature
from lamina.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_TABLE_SIZE = 256 << 20
"""Largest plain chunk table that is read, in bytes: ten million chunks."""


def read_ci_header(buffer: Buffer, blob_id: str) -> CiHeader:
    """Return the header of a chunk table in the first 4096 bytes of *buffer*."""
    view = memoryview(buffer)
    if len(view) < CI_HEADER_SIZE:
        raise FormatError(f"chunk table of blob {blob_id}: its header is cut off")
    magic, *fields, magic_at_end = CI_HEADER.unpack_from(view)
    if magic != CI_MAGIC or magic_at_end != CI_MAGIC:
        raise FormatError(f"chunk table of blob {blob_id}: its header has no magic number")
    return CiHeader._make(fields)


def entry_of(
    header: CiHeader,
    *,
    blob_id: str,
    chunk_size: int,
    compressor: int,
    digester: int,
    compressed_size: int,
    uncompressed_size: int,
) -> BlobEntry:
    """Return the blob table entry that says what the header of a blob's table says.

    *compressed_size* is that of the blob, *uncompressed_size* that of its address space.
    """
    return BlobEntry(
        blob_id=blob_id,
        index=0,
        chunk_size=chunk_size,
        chunk_count=header.entries,
        compressor=compressor,
        digester=digester,
        features=header.features,
        compressed_size=compressed_size,
        uncompressed_size=uncompressed_size,
        toc_size=0,
        ci_compressor=header.compressor,
        ci_offset=header.offset,
        ci_compressed_size=header.compressed_size,
        ci_uncompressed_size=header.uncompressed_size,
    )


def check_ci_header(header: CiHeader, entry: BlobEntry) -> None:
    """Raise FormatError if the header and the bootstrap say different things of a table."""
    pairs = (
        ("entries", header.entries, entry.chunk_count),
        ("compressor", header.compressor, entry.ci_compressor),
        ("offset", header.offset, entry.ci_offset),
        ("compressed size", header.compressed_size, entry.ci_compressed_size),
        ("uncompressed size", header.uncompressed_size, entry.ci_uncompressed_size),
    )
    for name, found, expected in pairs:
        if found != expected:
            raise FormatError(
                f"chunk table of blob {entry.blob_id}: {name} is {found} in its header, "
                f"{expected} in the bootstrap"
            )


def checked_table_size(entry: BlobEntry) -> int:
    """Return the size of the plain table of a blob, at most :data:`MAX_TABLE_SIZE`.

    Raises FormatError: it contradicts the number of chunks, or is too large; UnsupportedError: the
    blob is encrypted with AES-XTS, or has no table.
    """
    if entry.features & BlobFeature.ENCRYPTED:
        raise encrypted_error(entry.blob_id)
    if entry.features & BlobFeature.TARFS:
        raise UnsupportedError(f"blob {entry.blob_id} is a plain tar without a chunk table")
    record_size = V2_RECORD_SIZE if entry.features & BlobFeature.CHUNK_INFO_V2 else V1_RECORD_SIZE
    size = entry.ci_uncompressed_size
    if not entry.chunk_count * record_size <= size <= MAX_TABLE_SIZE:
        raise FormatError(
            f"chunk table of blob {entry.blob_id}: {size} bytes for {entry.chunk_count} chunks"
        )
    return size


def encrypted_error(blob_id: str) -> UnsupportedError:
    """Return the error for a blob that is encrypted in the way of Nydus."""
    return UnsupportedError(
        f"blob {blob_id} is encrypted with AES-XTS, its key lying in the open beside it",
        hint="rebuild the image; such encryption protects nothing",
    )


def check_contexts(header: CiHeader, entry: BlobEntry, records_size: int) -> None:
    """Raise FormatError unless the contexts lie in the table, behind *records_size* bytes."""
    context_bytes = entry.ci_uncompressed_size - records_size
    count = header.context_count
    if header.context_offset != records_size or header.context_size > context_bytes:
        problem = "its contexts lie outside the table"
    elif count > entry.chunk_count:
        problem = f"{count} contexts for {entry.chunk_count} chunks"
    elif count * CONTEXT_SIZE > header.context_size:
        problem = f"{count} contexts do not fit"
    else:
        return
    raise FormatError(f"chunk table of blob {entry.blob_id}: {problem}")
