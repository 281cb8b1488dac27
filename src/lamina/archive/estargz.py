"""The table of contents of an eStargz layer: a gzip member near its end, named by the footer.

Every part of a file is a gzip member of its own (or, since 0.15, lies in one with others).  Source:
eStargz document of stargz-snapshotter.  The footer is an empty gzip member of 51 bytes::

    0 1f 8b 08 04 | 4 time 4 | 8 flags 1 | 9 system 1 | 10 length of the extra field (26) 2
    12 "SG" | 14 length (22) 2 | 16 offset of the table, hex 16 | 32 "STARGZ"
    38 stored empty block 5 | 43 trailer 8
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Final

from lamina.archive import tar
from lamina.archive.blocks import BlockReader
from lamina.archive.layer_toc import (
    MAX_TOC_BYTES,
    JsonEntry,
    LayerToc,
    TocFile,
    TocMember,
    file_parts,
    group_chunks,
    parse_entries,
    tar_entry,
)
from lamina.codec.deflate_span import GZIP_WINDOW_BITS
from lamina.errors import FormatError, IntegrityError

FOOTER_BYTES: Final = 51
FOOTER: Final = re.compile(
    rb"\x1f\x8b\x08\x04.{6}\x1a\0SG\x16\0([0-9a-f]{16})STARGZ\x01\0\0\xff\xff\0{8}", re.DOTALL
)
MEMBER_HEADER_BYTES: Final = 10
MEMBER_MAGIC: Final = b"\x1f\x8b\x08\0"
"""Begin of a gzip member whose header has no names or extra fields, as those of eStargz."""

TABLE_PATH: Final = b"stargz.index.json"
MAX_STORED_TOC_BYTES: Final = MAX_TOC_BYTES // 2


def toc_place(footer: bytes, layer_bytes: int) -> tuple[int, int]:
    """Return (offset, size) of the member with the table, from the last 51 bytes of a layer.

    Raises FormatError if they are no footer, or claim what cannot be.
    """
    match = FOOTER.fullmatch(footer)
    if match is None:
        raise FormatError("the layer has no eStargz footer")
    offset = int(match[1], 16)
    size = layer_bytes - FOOTER_BYTES - offset
    if not 0 < size <= MAX_STORED_TOC_BYTES:
        raise FormatError(f"the eStargz footer puts {size} bytes of table at {offset}")
    return offset, size


def parse_toc(stored: bytes, offset: int, digest: str) -> LayerToc:
    """Parse the member with the table, which lies at ``offset`` of the layer.

    ``digest`` is what the manifest says that the table has.  Raises FormatError for a table that is
    malformed or not enough to read the layer by, IntegrityError for another one than promised.
    """
    if not stored.startswith(MEMBER_MAGIC):
        raise FormatError("the eStargz table of contents is no plain gzip member")
    engine = zlib.decompressobj(GZIP_WINDOW_BITS)
    try:
        # The entry around the table takes a header and less than three blocks.
        plain = engine.decompress(stored, MAX_TOC_BYTES + 4 * tar.BLOCK)
    except zlib.error as error:
        raise FormatError(f"the eStargz table of contents is no valid gzip: {error}") from None
    entry = next(tar.walk(BlockReader.over(plain)), None)
    if entry is None or entry.path != TABLE_PATH or entry.kind != tar.REGULAR:
        raise FormatError("the eStargz table of contents is not where the footer says")
    data = plain[entry.data_offset : entry.data_offset + entry.size]
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise IntegrityError("the eStargz table of contents is not the one in the manifest")
    files = [_file(first, others) for first, others in group_chunks(parse_entries(data))]
    itself = TocMember(entry, data, offset, entry.data_offset)
    return LayerToc("gzip", files, offset, itself)


def _file(first: JsonEntry, others: list[JsonEntry]) -> TocFile:
    entry = tar_entry(first)
    if entry.path == TABLE_PATH:
        raise FormatError("the eStargz table of contents lists itself")
    return TocFile(entry, file_parts(entry.size, first, others))
