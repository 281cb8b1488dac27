"""Table of contents at the tail of a blob: its sections and their digests (RAFS v6 §2.7)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from lamina.blob.layout import (
    MAX_TOC_SIZE,
    SECTION_TOC,
    TAR_BLOCK,
    TOC_ENTRY,
    TOC_LZ4,
    TOC_NONE,
    TOC_ZSTD,
    TocEntry,
    parse_tar_header,
    tar_header,
)
from lamina.codec.compress import Compressor, decompress
from lamina.erofs.layout import BlobEntry
from lamina.errors import FormatError, IntegrityError, UnsupportedError

TAIL_SIZE = 4096
"""Bytes at the end of a blob that hold its table of contents, if nothing says how long it is."""

ReadAt = Callable[[int, int], bytes]
"""``read_at(offset, size)`` returns that many bytes of a blob file."""

_COMPRESSORS = {TOC_NONE: Compressor.NONE, TOC_ZSTD: Compressor.ZSTD}


def encode_toc(entries: list[TocEntry]) -> bytes:
    """Return the entries and the tar header that ends a blob."""
    table = b"".join([entry.pack() for entry in entries])
    return table + tar_header(SECTION_TOC, len(table))


def decode_toc(tail: bytes) -> tuple[TocEntry, ...] | None:
    """Return the table of contents in the last bytes of a blob, or None if it has none.

    Raises FormatError: there is one, but it is damaged or longer than *tail*.
    """
    header = parse_tar_header(tail[-TAR_BLOCK:])
    if header is None or header[0] != SECTION_TOC:
        return None
    size = header[1]
    if size % TOC_ENTRY.size or not 0 < size <= min(len(tail), MAX_TOC_SIZE) - TAR_BLOCK:
        raise FormatError(f"table of contents of {size} bytes does not fit at the end of the blob")
    start = len(tail) - TAR_BLOCK - size
    entries = []
    for flags, raw_name, digest, *place in TOC_ENTRY.iter_unpack(tail[start : start + size]):
        try:
            name = raw_name.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError(f"table of contents: entry with the name {raw_name!r}") from error
        if flags & 0xF not in (TOC_NONE, TOC_ZSTD, TOC_LZ4):
            raise FormatError(f"table of contents: entry {name!r} has the flags {flags:#x}")
        entries.append(TocEntry(name, flags, digest, *place))
    if len({entry.name for entry in entries}) != len(entries):
        raise FormatError("table of contents: two entries have the same name")
    return tuple(entries)


def read_toc(
    read_at: ReadAt, blob_size: int, entry: BlobEntry | None = None
) -> tuple[TocEntry, ...] | None:
    """Return the table of contents of a blob of *blob_size* bytes, or None if it has none.

    If *entry* tells its length and digest, both are verified.

    Raises FormatError: it is damaged; IntegrityError: it is not the one that *entry* names.
    """
    size = min(TAIL_SIZE, blob_size // TOC_ENTRY.size * TOC_ENTRY.size)
    digest = bytes(32)
    if entry is not None and entry.toc_size:
        size, digest = entry.toc_size, entry.toc_digest
        if not TAR_BLOCK <= size <= min(MAX_TOC_SIZE, blob_size) or size % TOC_ENTRY.size:
            raise FormatError(f"blob {entry.blob_id}: a table of contents of {size} bytes")
    tail = read_at(blob_size - size, size)
    if any(digest) and hashlib.sha256(tail).digest() != digest:
        raise IntegrityError("table of contents of a blob: wrong digest")
    return decode_toc(tail)


def read_entry(read_at: ReadAt, blob_size: int, entry: TocEntry, max_bytes: int) -> bytes:
    """Return the plain bytes of a section, verified against its digest.

    Raises FormatError: it lies outside the blob or claims more than *max_bytes*; IntegrityError: it
    does not have the promised length or digest; UnsupportedError: it is compressed in a way that no
    tool reads.
    """
    if (
        entry.offset + entry.size > blob_size
        or max(entry.size, entry.uncompressed_size) > max_bytes
    ):
        raise FormatError(
            f"section {entry.name!r} claims {entry.size} bytes at {entry.offset} "
            f"({entry.uncompressed_size} plain) in a blob of {blob_size}"
        )
    compressor = _COMPRESSORS.get(entry.flags & 0xF)
    if compressor is None:
        raise UnsupportedError(f"section {entry.name!r} is compressed with lz4")
    stored = read_at(entry.offset, entry.size)
    plain = decompress(compressor, stored, entry.uncompressed_size)
    if hashlib.sha256(plain).digest() != entry.digest:
        raise IntegrityError(f"section {entry.name!r}: wrong digest")
    return plain
