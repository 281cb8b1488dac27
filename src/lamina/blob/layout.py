"""On-disk records of a data blob: chunk table, contents, tar headers (RAFS v6 §2).

A blob is a stream of sections, each followed at once by a 512-byte tar header that names it, so it
is parsed from its end.  All integers are little-endian; the tar headers are octal text.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

TAR_BLOCK = 512
CI_HEADER_SIZE = 4096
CI_MAGIC = 0xB10BB10B
V1_RECORD_SIZE = 16
V2_RECORD_SIZE = 24

SECTION_DATA = "image.blob"
SECTION_TABLE = "blob.meta"
SECTION_TABLE_HEADER = "blob.meta.header"
SECTION_DIGESTS = "blob.digest"
SECTION_BOOTSTRAP = "image.boot"
SECTION_TOC = "rafs.blob.toc"

# A V1 record is two u64 (RAFS v6 §2.4):
#   word 0: 63-44 low 20 bits of uncompressed_size - 1, 43-12 uncompressed_offset >> 12,
#           11-8 bits 20-23 of uncompressed_size - 1
#   word 1: 63-44 low 20 bits of compressed_size - 1, 43-40 bits 20-23 of it, 39-0 compressed_offset
V1_OFFSET_MASK = 0xFFF_FFFF_F000
# A V2 record is three u64:
#   word 0: 31-0 uncompressed_offset >> 12, 55-32 uncompressed_size - 1, 63-56 flags
#   word 1: 39-0 compressed_offset, 63-40 compressed_size
#   word 2: zran or batch: index << 32 | offset in its output; has_crc32: CRC-32C
COMPRESSED_OFFSET_MASK = 0xFF_FFFF_FFFF
MAX_STORED_SIZE_V2 = 0xFFFFFF

CHUNK_COMPRESSED = 0x01
CHUNK_ZRAN = 0x02
CHUNK_BATCH = 0x04
CHUNK_ENCRYPTED = 0x08
CHUNK_HAS_CRC32 = 0x10

# 0 compressed_size, 4 uncompressed size of the concatenated chunks, 8 reserved
BATCH_CONTEXT = Struct("<II32x")
# 0 in_offset, 8 out_offset, 16 dict_offset, 24 in_len, 28 out_len, 32 dict_size, 36 ctx_byte, 37
# ctx_bits, 38 zero
ZRAN_CONTEXT = Struct("<QQQIIIBB2x")
CONTEXT_SIZE = 40
MAX_ZRAN_OUTPUT = 16 << 20
MAX_ZRAN_INPUT = 2 * MAX_ZRAN_OUTPUT
MAX_ZRAN_DICTIONARY = 32 << 10

# 0 magic, 4 features, 8 ci_compressor, 12 entries, 16 ci_offset, 24 stored size, 32 uncompressed
# size, 40 context offset, 48 context bytes, 56 context count, 60 zeros, 4092 magic
CI_HEADER = Struct("<IIIIQQQQQI4032xI")
# 0 flags, 4 zero, 8 name, 24 digest of the uncompressed section, 56 offset, 64 stored size, 72
# uncompressed size
TOC_ENTRY = Struct("<I4x16s32sQQQ48x")
TOC_NONE = 0x1
TOC_ZSTD = 0x2
TOC_LZ4 = 0x4
MAX_TOC_SIZE = 65536


class CiHeader(NamedTuple):
    """Header of a chunk table, 4096 bytes (RAFS v6 §2.6)."""

    features: int
    compressor: int
    entries: int
    offset: int
    compressed_size: int
    uncompressed_size: int
    context_offset: int
    context_size: int
    context_count: int

    def pack(self) -> bytes:
        """Return the 4096 bytes on disk."""
        return CI_HEADER.pack(CI_MAGIC, *self, CI_MAGIC)


class ZranContext(NamedTuple):
    """A point from which a gzip stream can be inflated (RAFS v6 §2.5).

    ``dict_offset`` counts from the begin of the dictionaries.
    """

    in_offset: int
    out_offset: int
    dict_offset: int
    in_size: int
    out_size: int
    dict_size: int
    byte: int
    bits: int


class TocEntry(NamedTuple):
    """One section in the table of contents (RAFS v6 §2.7)."""

    name: str
    flags: int
    digest: bytes
    offset: int
    size: int
    uncompressed_size: int

    def pack(self) -> bytes:
        """Return the 128 bytes on disk."""
        return TOC_ENTRY.pack(self.flags, self.name.encode(), *self[2:])


def pack_v1(uncompressed_offset: int, raw_size: int, offset: int, size: int) -> tuple[int, int]:
    """Return the two words of a V1 record; all in bytes."""
    raw, stored = raw_size - 1, size - 1
    return (
        (raw & 0xFFFFF) << 44 | uncompressed_offset | (raw >> 20) << 8,
        (stored & 0xFFFFF) << 44 | (stored >> 20) << 40 | offset,
    )


def pack_v2(
    uncompressed_offset: int, raw_size: int, offset: int, size: int, flags: int, data: int = 0
) -> tuple[int, int, int]:
    """Return the three words of a V2 record; offsets and sizes in bytes."""
    return (
        uncompressed_offset >> 12 | (raw_size - 1) << 32 | flags << 56,
        offset | size << 40,
        data,
    )


def tar_header(name: str, size_bytes: int) -> bytes:
    """Return the tar header that follows a section, as nydus-image writes it (RAFS v6 §2.2)."""
    if size_bytes < 8 << 30:
        size = b"%011o\0" % size_bytes
    else:
        size = b"\x80" + size_bytes.to_bytes(11, "big")
    fields = (
        name.encode().ljust(124, b"\0"),
        size,
        b"00000000000\0",
        b" " * 8,
        b"0".ljust(101, b"\0"),
        b"ustar  \0",
    )
    header = b"".join(fields).ljust(TAR_BLOCK, b"\0")
    return header[:148] + b"%07o\0" % sum(header) + header[156:]


def parse_tar_header(header: bytes) -> tuple[str, int] | None:
    """Return (name, size) of a section's tar header, or None if these 512 bytes are none."""
    if len(header) != TAR_BLOCK or header[257:263] != b"ustar " or header[156:157] != b"0":
        return None
    summed = sum(header) - sum(header[148:156]) + 8 * 0x20
    raw_name = header[:100].partition(b"\0")[0]
    raw_size = header[124:136]
    try:
        if int(header[148:156].rstrip(b"\0 "), 8) != summed:
            return None
        if raw_size[0] & 0x80:
            size = int.from_bytes(raw_size, "big") & (1 << 95) - 1
        else:
            size = int(raw_size.strip(b"\0 ") or b"0", 8)
        name = raw_name.decode("ascii")
    except ValueError:
        return None
    return (name, size) if name and size >= 0 else None
