"""The table of contents of a zstd:chunked layer: a skippable frame that the manifest points to.

A file is a run of whole frames, cut where its content says so and not evenly; so it is taken as one
part, whose SHA-256 the table has as well.  Source: containers/storage, ``pkg/chunked``.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from lamina.archive.layer_toc import (
    MAX_TOC_BYTES,
    JsonEntry,
    LayerToc,
    TocChunk,
    TocFile,
    group_chunks,
    parse_entries,
    sha256_of,
    tar_entry,
)
from lamina.codec.compress import Compressor, decompress
from lamina.errors import FormatError, IntegrityError

POSITION: Final = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18}):1", re.ASCII)
FRAME_HEADER_BYTES: Final = 8


def toc_place(position: str, layer_bytes: int) -> tuple[int, int, int]:
    """Return (offset, stored size, plain size) of the table, from the annotation that tells them.

    Raises FormatError for what cannot be.
    """
    match = POSITION.fullmatch(position)
    if match is None:
        raise FormatError(f"The position {position[:80]!r} of a zstd:chunked table is malformed.")
    offset, size, plain_size = int(match[1]), int(match[2]), int(match[3])
    fits = FRAME_HEADER_BYTES < offset < offset + size <= layer_bytes
    if not fits or max(size, plain_size) > MAX_TOC_BYTES:
        raise FormatError(f"A zstd:chunked table cannot be {size} bytes at {offset}.")
    return offset, size, plain_size


def parse_toc(stored: bytes, offset: int, plain_size: int, digest: str) -> LayerToc:
    """Parse a table, which lies at ``offset`` of the layer.

    ``digest`` is what the manifest says that its stored bytes have.  Raises FormatError for a table
    that is malformed or not enough to read the layer by, IntegrityError for another one than
    promised.
    """
    if f"sha256:{hashlib.sha256(stored).hexdigest()}" != digest:
        raise IntegrityError("The zstd:chunked table of contents is not the one in the manifest.")
    entries = parse_entries(decompress(Compressor.ZSTD, stored, plain_size))
    files = [_file(first) for first, _ in group_chunks(entries)]
    return LayerToc("zstd", files, offset - FRAME_HEADER_BYTES)


def _file(first: JsonEntry) -> TocFile:
    entry = tar_entry(first)
    if not entry.size:
        return TocFile(entry, [])
    if first.end_offset <= first.offset:
        raise FormatError(f"The table of contents gives {first.name[:200]!r} no place.")
    return TocFile(entry, [TocChunk(first.offset, 0, entry.size, sha256_of(first, first.digest))])
