"""On-disk records of an EROFS image with RAFS v6 metadata, as structs and the values they hold.

Offsets in the comments are those of the Linux kernel's ``fs/erofs/erofs_fs.h`` and of RAFS v6 §1.
All integers are little-endian.  This module knows shapes only; what makes an image valid is in
``superblock`` and ``check``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

BLOCK_SIZE = 4096
SUPERBLOCK_OFFSET = 1024
EXTENDED_SUPERBLOCK_OFFSET = 1152
DEVICE_SLOT_OFFSET = 1408
DEVICE_SLOT_SIZE = 128
NID_SHIFT = 5
NID_SIZE = 1 << NID_SHIFT
ROOT_NID = 128
META_RESERVED = 4096
"""Bytes left unused between the metadata base and the root inode, so that no inode has number 0."""

MAGIC = 0xE0F5E1E2
COMPAT_RAFS_V6 = 0x40000000
INCOMPAT_CHUNKED_DEVICE_TABLE = 0x0000000C

MIN_CHUNK_SIZE = 4096
MAX_CHUNK_SIZE = 16 << 20
MAX_CHUNKS_PER_BLOB = 1 << 24
MAX_BLOBS = 254
MAX_BLOB_COMPRESSED_SIZE = 1 << 40
MAX_BLOB_UNCOMPRESSED_SIZE = 1 << 44
MAX_NAME_SIZE = 255
MAX_SYMLINK_SIZE = 4096
MAX_XATTR_VALUE_SIZE = 65535
DEVICE_ALIGNMENT = 0x80000
CHECK_VERSION = 2
"""Of the rules in ``check``; goes up with every one that is added, so that what an earlier version
of Lamina let pass is looked at again.
"""
PLACEHOLDER_BLOB_ID = "x" * 64
"""Blob id in a bootstrap inside of its own blob, whose digest it cannot know (RAFS v6 §1.6)."""


class SuperFlag(IntFlag):
    """Flag bits of the extended superblock (RAFS v6 §1.4)."""

    COMPRESSION_NONE = 0x0001
    COMPRESSION_LZ4 = 0x0002
    HASH_BLAKE3 = 0x0004
    HASH_SHA256 = 0x0008
    EXPLICIT_UID_GID = 0x0010
    HAS_XATTR = 0x0020
    COMPRESSION_GZIP = 0x0040
    COMPRESSION_ZSTD = 0x0080
    INLINED_CHUNK_DIGEST = 0x0100
    TARFS_MODE = 0x0200
    ENCRYPTION_NONE = 0x01000000
    ENCRYPTION_AES_128_XTS = 0x02000000


SUPER_FLAGS_KNOWN = 0xFF0003FF
"""Every defined bit and the six reserved compatible ones; no other may be set."""


class BlobFeature(IntFlag):
    """Feature bits of a blob table entry and of a chunk table header (RAFS v6 §1.7)."""

    ALIGNED = 0x00000001
    INLINED_FS_META = 0x00000002
    CHUNK_INFO_V2 = 0x00000004
    ZRAN = 0x00000008
    SEPARATE = 0x00000010
    INLINED_CHUNK_DIGEST = 0x00000020
    TARFS = 0x00000040
    BATCH = 0x00000080
    ENCRYPTED = 0x00000100
    IS_CHUNKDICT_GENERATED = 0x00000200
    IS_SEPARATED_WITH_PREFETCH_FILES = 0x00000400
    EXTERNAL = 0x00000800
    ZSTD_FRAMES = 0x00001000
    """Of Lamina: contexts are runs of zstd frames.  A bit that makes Nydus refuse the blob."""
    WHOLE_STREAM = 0x00002000
    """Of Lamina: the layer can be decoded only from its begin; chunks are places in its tar
    stream.  Another bit that makes Nydus refuse the blob.
    """
    HAS_TAR_HEADER = 0x10000000
    HAS_TOC = 0x20000000
    CAP_TAR_TOC = 0x40000000


BLOB_FEATURES_REFUSED = 0x8000C000


class Layout(IntEnum):
    """Data layouts of an inode (bits 1-3 of ``i_format``)."""

    FLAT_PLAIN = 0
    FLAT_INLINE = 2
    CHUNK_BASED = 4


class FileType(IntEnum):
    """Types in a directory entry."""

    UNKNOWN = 0
    REGULAR = 1
    DIRECTORY = 2
    CHARACTER = 3
    BLOCK = 4
    FIFO = 5
    SOCKET = 6
    SYMLINK = 7


FILE_TYPE_OF_FORMAT = {
    0o100000: FileType.REGULAR,
    0o040000: FileType.DIRECTORY,
    0o020000: FileType.CHARACTER,
    0o060000: FileType.BLOCK,
    0o010000: FileType.FIFO,
    0o140000: FileType.SOCKET,
    0o120000: FileType.SYMLINK,
}
"""Directory entry type of the file-format bits of a mode."""

XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
XATTR_WHOLE_NAMES = (2, 3)

# 0 magic, 4 checksum, 8 feature_compat, 12 blkszbits, 13 extslots, 14 root_nid, 16 inos, 24
# build_time, 32 build_time_nsec, 36 blocks, 40 meta_blkaddr, 44 xattr_blkaddr, 48 uuid, 64
# volume_name, 80 feature_incompat, 84 u1, 86 extra_devices, 88 devt_slotoff, 90 dirblkbits and 37
# more reserved bytes
SUPERBLOCK = Struct("<IIIBBHQqIIII16s16sIHHHB37x")
# 0 flags, 8 blob_table_offset, 16 blob_table_size, 20 chunk_size, 24 chunk_table_offset, 32
# chunk_table_size, 40 prefetch_table_offset, 48 prefetch_table_size, 52 padding, 56 reserved
EXTENDED_SUPERBLOCK = Struct("<QQIIQQQI204x")
# 0 tag (blob id), 64 blocks, 68 mapped_blkaddr, 72 reserved
DEVICE_SLOT = Struct("<64sII56x")
# 0 blob_id, 64 blob_index, 68 chunk_size, 72 chunk_count, 76 compression_algo, 80 digest_algo, 84
# features, 88 compressed_size, 96 uncompressed_size, 104 blob_toc_size, 108 ci_compressor, 112
# ci_offset, 120 ci_compressed_size, 128 ci_uncompressed_size, 136 blob_toc_digest, 168
# blob_meta_digest (or key), 200 blob_meta_size (or IV), 208 cipher_iv, 216 cipher_algo, 220
# reserved
BLOB_ENTRY = Struct("<64sIIIIIIQQIIQQQ32s32sQQI36x")
# 0 i_format, 2 i_xattr_icount, 4 i_mode, 6 reserved, 8 i_size, 16 i_u, 20 i_ino, 24 i_uid, 28
# i_gid, 32 i_mtime, 40 i_mtime_nsec, 44 i_nlink, 48 reserved
INODE_EXTENDED = Struct("<HHH2xQIIIIqII16x")
# 0 i_format, 2 i_xattr_icount, 4 i_mode, 6 i_nlink, 8 i_size, 12 reserved, 16 i_u, 20 i_ino, 24
# i_uid, 26 i_gid, 28 reserved
INODE_COMPACT = Struct("<HHHHI4xIIHH4x")
# 0 nid, 8 nameoff, 10 file_type, 11 reserved
DIRENT = Struct("<QHBx")
# 0 low 16 bits of the chunk index, 2 device id = blob index + 1, 3 bits 16-23 of the chunk index, 4
# block address
CHUNK_INDEX = Struct("<HBBI")
# 0 digest, 32 blob_index, 36 flags, 40 compressed_size, 44 uncompressed_size, 48 compressed_offset,
# 56 uncompressed_offset, 64 file_offset, 72 index, 76 crc32
CHUNK_ENTRY = Struct("<32sIIIIQQQII")
# 0 name filter, 4 shared_count, 5 reserved
XATTR_HEADER = Struct("<IB7x")
# 0 name length without prefix, 1 prefix index, 2 value size
XATTR_ENTRY = Struct("<BBH")

CHUNK_FORMAT_INDEXES = 0x20
"""Chunk format in ``i_u``: 8-byte indexes; bits 0-4 are log2(chunk size / block size)."""
CHUNK_FORMAT_BITS = 0x1F

CHUNK_FLAG_COMPRESSED = 0x1
CHUNK_FLAG_HAS_CRC32 = 0x10


class Superblock(NamedTuple):
    """EROFS superblock, 128 bytes at offset 1024 (RAFS v6 §1.2)."""

    magic: int
    checksum: int
    feature_compat: int
    block_bits: int
    extension_slots: int
    root_nid: int
    inode_count: int
    build_time: int
    build_time_ns: int
    blocks: int
    meta_block: int
    xattr_block: int
    uuid: bytes
    volume_name: bytes
    feature_incompat: int
    u1: int
    extra_devices: int
    device_slot_offset: int
    directory_block_bits: int


class ExtendedSuperblock(NamedTuple):
    """RAFS v6 extended superblock, 256 bytes at offset 1152 (RAFS v6 §1.3)."""

    flags: int
    blob_table_offset: int
    blob_table_size: int
    chunk_size: int
    chunk_table_offset: int
    chunk_table_size: int
    prefetch_table_offset: int
    prefetch_table_size: int


class DeviceSlot(NamedTuple):
    """EROFS device slot, 128 bytes each from offset 1408 (RAFS v6 §1.5)."""

    tag: bytes
    blocks: int
    mapped_block: int


class BlobEntry(NamedTuple):
    """One data blob as the bootstrap describes it, 256 bytes on disk (RAFS v6 §1.6).

    Sizes and offsets are in bytes.
    """

    blob_id: str
    index: int  # type: ignore[assignment]
    chunk_size: int
    chunk_count: int
    compressor: int
    digester: int
    features: int
    compressed_size: int
    uncompressed_size: int
    toc_size: int
    ci_compressor: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    toc_digest: bytes = bytes(32)
    meta_digest: bytes = bytes(32)
    meta_size: int = 0
    cipher_iv: int = 0
    cipher: int = 0

    def pack(self) -> bytes:
        """Return the 256 bytes on disk."""
        return BLOB_ENTRY.pack(self.blob_id.encode(), *self[1:])

    @property
    def is_read_whole(self) -> bool:
        """Whether the layer is decoded from its begin to its end, because it has no points
        between.
        """
        return bool(self.features & BlobFeature.WHOLE_STREAM)

    @property
    def compressed_data_size(self) -> int:
        """End of the chunk data in the blob file, which bounds every chunk (RAFS v6 §2.8).

        Of a layer that is read whole, the longest possible tar stream: nothing tells its length.
        """
        if self.is_read_whole:
            return MAX_BLOB_UNCOMPRESSED_SIZE
        if self.features & BlobFeature.SEPARATE or not self.features & BlobFeature.CAP_TAR_TOC:
            return self.compressed_size
        if self.features & BlobFeature.HAS_TAR_HEADER:
            return self.ci_offset - 512
        return self.ci_offset


class Inode(NamedTuple):
    """One inode, whichever form it has on disk.

    ``rdev`` is in the kernel's "new" encoding, 0 for all but devices and fifos; ``raw`` is ``i_u``;
    ``offset`` and ``header_size`` (inode, then extended attributes) say where what follows the
    inode begins.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_ns: int
    nlink: int
    rdev: int
    layout: int
    ino: int
    raw: int
    offset: int
    inode_size: int
    xattr_size: int


class Dirent(NamedTuple):
    """One directory entry; ``file_type`` is a :class:`FileType` value."""

    name: bytes
    nid: int
    file_type: int


class ChunkIndex(NamedTuple):
    """Where one chunk of a file lies; the address counts blocks of the uncompressed space."""

    blob_index: int
    chunk_index: int
    block_address: int

    def pack(self) -> bytes:
        """Return the 8 bytes on disk (RAFS v6 §1.11)."""
        return CHUNK_INDEX.pack(
            self.chunk_index & 0xFFFF,
            self.blob_index + 1,
            self.chunk_index >> 16,
            self.block_address,
        )


class ChunkEntry(NamedTuple):
    """Entry of the bootstrap's chunk table, 80 bytes on disk (RAFS v6 §1.9)."""

    digest: bytes
    blob_index: int
    flags: int
    compressed_size: int
    uncompressed_size: int
    compressed_offset: int
    uncompressed_offset: int
    file_offset: int
    index: int  # type: ignore[assignment]
    crc32: int


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of ``step`` (a power of two) that is not below ``value``."""
    return (value + step - 1) & -step
