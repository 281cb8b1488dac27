"""The table of contents of a zstd:chunked layer: a skippable frame that the manifest points to.

containers/storage makes a file a run of whole frames, cut where its content says so and not evenly;
so it is taken as one part, whose SHA-256 the table has as well.  stargz cuts it evenly, tells where
each part begins and nowhere where the file ends.  The footer is the end of another skippable
frame, in numbers of 8 bytes::

    0 offset of the table | 8 its stored size | 16 its plain size | 24 type 1 | 32 "GnUlInUx"

Sources: containers/storage, ``pkg/chunked``; Go module ``estargz/zstdchunked`` 0.18.
"""

from __future__ import annotations

import hashlib
import re
from struct import Struct
from typing import Final

from lamina.archive.layer_toc import (
    MAX_TOC_BYTES,
    JsonEntry,
    LayerToc,
    TocChunk,
    TocFile,
    file_parts,
    group_chunks,
    parse_entries,
    sha256_of,
    tar_entry,
)
from lamina.codec.compress import Compressor, decompress
from lamina.errors import FormatError, IntegrityError

POSITION: Final = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18}):1", re.ASCII)
FRAME_HEADER_BYTES: Final = 8
FOOTER: Final = Struct("<QQQQ8s")
FOOTER_MAGIC: Final = b"GnUlInUx"


def toc_place(position: str, layer_bytes: int) -> tuple[int, int, int]:
    """Return (offset, stored size, plain size) of the table, from the annotation that tells them.

    Raises FormatError for what cannot be.
    """
    match = POSITION.fullmatch(position)
    if match is None:
        raise FormatError(f"the position {position[:80]!r} of a zstd:chunked table is malformed")
    return _checked_place(int(match[1]), int(match[2]), int(match[3]), layer_bytes)


def is_footer(end: bytes) -> bool:
    """Tell whether the last bytes of a layer are a footer of zstd:chunked in stargz's form."""
    return len(end) >= FOOTER.size and end.endswith(FOOTER_MAGIC)


def footer_place(end: bytes, layer_bytes: int) -> tuple[int, int, int]:
    """Return what :func:`toc_place` does, from the last bytes of a layer."""
    offset, size, plain_size, kind, _ = FOOTER.unpack(end[-FOOTER.size :])
    if kind != 1:
        raise FormatError(f"the footer of a zstd:chunked layer is of the unknown type {kind}")
    return _checked_place(offset, size, plain_size, layer_bytes)


def _checked_place(
    offset: int, size: int, plain_size: int, layer_bytes: int
) -> tuple[int, int, int]:
    fits = FRAME_HEADER_BYTES < offset < offset + size <= layer_bytes
    if not fits or max(size, plain_size) > MAX_TOC_BYTES:
        raise FormatError(f"a zstd:chunked table cannot be {size} bytes at {offset}")
    return offset, size, plain_size


def parse_toc(
    stored: bytes, offset: int, plain_size: int, checksum: str, json_digest: str = ""
) -> LayerToc:
    """Parse a table, which lies at ``offset`` of the layer.

    ``checksum`` is what the manifest says that its stored bytes have, ``json_digest`` the same of
    the JSON; one of them must be given.  Raises FormatError for a table that is malformed or not
    enough to read the layer by, IntegrityError for another one than promised.
    """
    if checksum:
        _verify(stored, checksum)
    plain = decompress(Compressor.ZSTD, stored, plain_size)
    if json_digest or not checksum:
        _verify(plain, json_digest)
    files = [_file(first, others) for first, others in group_chunks(parse_entries(plain))]
    return LayerToc("zstd", files, offset - FRAME_HEADER_BYTES)


def _verify(data: bytes, digest: str) -> None:
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise IntegrityError("the zstd:chunked table of contents is not the one in the manifest")


def _file(first: JsonEntry, others: list[JsonEntry]) -> TocFile:
    entry = tar_entry(first)
    if not entry.size:
        return TocFile(entry, [])
    if not first.end_offset and first.offset:
        return TocFile(entry, file_parts(entry.size, first, others))
    if first.end_offset <= first.offset:
        raise FormatError(f"the table of contents gives {first.name[:200]!r} no place")
    return TocFile(entry, [TocChunk(first.offset, 0, entry.size, sha256_of(first, first.digest))])
