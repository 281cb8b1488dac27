"""The fixed part of a bootstrap: superblocks, device slots, tables (RAFS v6 §1.1-1.8).

Everything is checked against the size of the image as it is read, so what these functions return
can be trusted to lie inside of it.
"""

from __future__ import annotations

from typing import NamedTuple

from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.layout import (
    BLOB_ENTRY,
    BLOB_FEATURES_REFUSED,
    CHUNK_ENTRY,
    COMPAT_RAFS_V6,
    DEVICE_SLOT,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    EXTENDED_SUPERBLOCK,
    EXTENDED_SUPERBLOCK_OFFSET,
    INCOMPAT_CHUNKED_DEVICE_TABLE,
    MAGIC,
    MAX_BLOB_COMPRESSED_SIZE,
    MAX_BLOB_UNCOMPRESSED_SIZE,
    MAX_BLOBS,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS_PER_BLOB,
    MIN_CHUNK_SIZE,
    SUPER_FLAGS_KNOWN,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    BlobEntry,
    BlobFeature,
    DeviceSlot,
    ExtendedSuperblock,
    Superblock,
    SuperFlag,
)
from lamina.errors import FormatError

COMPRESSOR_FLAGS = {
    SuperFlag.COMPRESSION_NONE: Compressor.NONE,
    SuperFlag.COMPRESSION_LZ4: Compressor.LZ4_BLOCK,
    SuperFlag.COMPRESSION_GZIP: Compressor.GZIP,
    SuperFlag.COMPRESSION_ZSTD: Compressor.ZSTD,
}
DIGESTER_FLAGS = {
    SuperFlag.HASH_BLAKE3: Digester.BLAKE3,
    SuperFlag.HASH_SHA256: Digester.SHA256,
}
_COMPRESSOR_MASK = sum(COMPRESSOR_FLAGS)
_DIGESTER_MASK = sum(DIGESTER_FLAGS)
MAX_PREFETCH_BYTES = 1 << 20
"""A quarter of a million files or folders that are to be fetched ahead, each by its name."""

_WITH_CONTEXTS = BlobFeature.BATCH | BlobFeature.ZRAN | BlobFeature.ENCRYPTED
_WITHOUT_TABLE = BlobFeature.TARFS | BlobFeature.IS_CHUNKDICT_GENERATED


class Header(NamedTuple):
    """The decoded fixed part of a bootstrap."""

    superblock: Superblock
    extended: ExtendedSuperblock
    block_size: int
    meta_offset: int
    compressor: Compressor
    digester: Digester
    devices: tuple[DeviceSlot, ...]
    blobs: tuple[BlobEntry, ...]
    prefetch_nids: tuple[int, ...]


def read_header(view: memoryview) -> Header:
    """Decode and check the fixed part of the bootstrap in ``view``.

    Raises:
        FormatError: names the first field that is not as RAFS v6 §1 demands.
    """
    superblock = _read_superblock(view)
    extended = _read_extended(view)
    tarfs = bool(extended.flags & SuperFlag.TARFS_MODE)
    if tarfs != (superblock.block_bits == 9):
        raise _bad("blkszbits", superblock.block_bits, "9 in tarfs mode, 12 otherwise")
    block_size = 1 << superblock.block_bits
    if len(view) % block_size:
        raise _bad("file size", len(view), f"a multiple of the block size {block_size}")
    meta_offset = superblock.meta_block * block_size
    if meta_offset > len(view):
        raise _bad("meta_blkaddr", superblock.meta_block, "inside the file")
    devices = _read_devices(view, superblock)
    return Header(
        superblock,
        extended,
        block_size,
        meta_offset,
        COMPRESSOR_FLAGS[SuperFlag(extended.flags & _COMPRESSOR_MASK)],
        DIGESTER_FLAGS[SuperFlag(extended.flags & _DIGESTER_MASK)],
        devices,
        _read_blobs(view, superblock, extended),
        _read_prefetch(view, extended),
    )


def _read_superblock(view: memoryview) -> Superblock:
    if len(view) < 4096:
        raise _bad("file size", len(view), "at least 4096")
    superblock = Superblock._make(SUPERBLOCK.unpack_from(view, SUPERBLOCK_OFFSET))
    if superblock.magic != MAGIC:
        raise FormatError(f"not an EROFS image: magic is {superblock.magic:#010x}")
    if not superblock.feature_compat & COMPAT_RAFS_V6:
        raise FormatError(
            "EROFS image without RAFS v6 metadata",
            hint="images of mkfs.erofs have no chunk table; convert the source image instead",
        )
    if superblock.block_bits not in (9, 12):
        raise _bad("blkszbits", superblock.block_bits, "9 or 12")
    expected = {
        "checksum": 0,
        "extension_slots": 0,
        "xattr_block": 0,
        "u1": 0,
        "feature_incompat": INCOMPAT_CHUNKED_DEVICE_TABLE,
        "device_slot_offset": DEVICE_SLOT_OFFSET // DEVICE_SLOT_SIZE,
        "directory_block_bits": 0,
    }
    for name, value in expected.items():
        found = getattr(superblock, name)
        if found != value:
            raise _bad(name, found, str(value))
    if superblock.inode_count == 0:
        raise _bad("inode count", 0, "at least 1")
    if superblock.extra_devices > MAX_BLOBS:
        raise _bad("extra_devices", superblock.extra_devices, f"at most {MAX_BLOBS}")
    if superblock.extra_devices == 0 and superblock.blocks not in (0, 4096):
        raise _bad("blocks", superblock.blocks, "0 in an image without blobs")
    return superblock


def _read_extended(view: memoryview) -> ExtendedSuperblock:
    fields = EXTENDED_SUPERBLOCK.unpack_from(view, EXTENDED_SUPERBLOCK_OFFSET)
    extended = ExtendedSuperblock._make(fields)
    flags = extended.flags
    if flags & ~SUPER_FLAGS_KNOWN:
        raise _bad("flags", hex(flags), "only known bits")
    if (flags & _COMPRESSOR_MASK).bit_count() != 1:
        raise _bad("flags", hex(flags), "exactly one compression bit")
    if (flags & _DIGESTER_MASK).bit_count() != 1:
        raise _bad("flags", hex(flags), "exactly one digest bit")
    _check_chunk_size(extended.chunk_size)
    table_end = extended.blob_table_offset + extended.blob_table_size
    if extended.blob_table_offset % 4096 or not 4096 <= extended.blob_table_offset <= len(view):
        raise _bad(
            "blob_table_offset", extended.blob_table_offset, "a 4096-aligned place in the file"
        )
    if extended.blob_table_size % BLOB_ENTRY.size or table_end > len(view):
        raise _bad("blob_table_size", extended.blob_table_size, "whole entries inside the file")
    _check_chunk_table(view, extended)
    return extended


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size & (chunk_size - 1) or not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE:
        raise _bad("chunk_size", chunk_size, "a power of two from 4096 to 16777216")


def _check_chunk_table(view: memoryview, extended: ExtendedSuperblock) -> None:
    offset, size = extended.chunk_table_offset, extended.chunk_table_size
    if size == 0:
        return
    if size % CHUNK_ENTRY.size or offset + size > len(view):
        raise _bad("chunk_table_size", size, "whole entries inside the file")
    if offset % 4096:
        raise _bad("chunk_table_offset", offset, "4096-aligned")
    blob_end = extended.blob_table_offset + extended.blob_table_size
    if offset < blob_end and extended.blob_table_offset < offset + size:
        raise _bad("chunk_table_offset", offset, "clear of the blob table")


def _read_devices(view: memoryview, superblock: Superblock) -> tuple[DeviceSlot, ...]:
    end = DEVICE_SLOT_OFFSET + superblock.extra_devices * DEVICE_SLOT_SIZE
    if end > len(view):
        raise _bad("extra_devices", superblock.extra_devices, "slots inside the file")
    slots = DEVICE_SLOT.iter_unpack(view[DEVICE_SLOT_OFFSET:end])
    return tuple(DeviceSlot(tag.rstrip(b"\0"), blocks, mapped) for tag, blocks, mapped in slots)


def _read_blobs(
    view: memoryview, superblock: Superblock, extended: ExtendedSuperblock
) -> tuple[BlobEntry, ...]:
    count = extended.blob_table_size // BLOB_ENTRY.size
    if count != superblock.extra_devices:
        raise _bad("blob table", f"of {count} entries", f"{superblock.extra_devices} entries")
    start = extended.blob_table_offset
    if count and start < DEVICE_SLOT_OFFSET + count * DEVICE_SLOT_SIZE:
        raise _bad("blob_table_offset", start, "after the device slots")
    entries = BLOB_ENTRY.iter_unpack(view[start : start + extended.blob_table_size])
    blobs = []
    for index, (raw_id, *rest) in enumerate(entries):
        try:
            blob_id = raw_id.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"blob {index}: its id is not UTF-8") from error
        blob = BlobEntry(blob_id, *rest)
        _check_blob(blob, index, extended)
        blobs.append(blob)
    if len({blob.blob_id for blob in blobs}) != len(blobs):
        raise FormatError("blob table: two entries have the same blob id")
    return tuple(blobs)


def _check_blob(blob: BlobEntry, position: int, extended: ExtendedSuperblock) -> None:
    tarfs = bool(extended.flags & SuperFlag.TARFS_MODE)
    conditions = (
        ("blob id", bool(blob.blob_id) and "/" not in blob.blob_id and "\0" not in blob.blob_id),
        ("blob index", blob.index == position),
        ("chunk_size", blob.chunk_size == extended.chunk_size),
        ("chunk_count", 1 <= blob.chunk_count <= MAX_CHUNKS_PER_BLOB),
        ("compressor", blob.compressor <= max(Compressor)),
        ("digester", blob.digester <= max(Digester)),
        ("features (unknown bit)", not blob.features & BLOB_FEATURES_REFUSED),
        ("features (ALIGNED)", bool(blob.features & BlobFeature.ALIGNED) != tarfs),
        ("compressed_size", blob.compressed_size <= MAX_BLOB_COMPRESSED_SIZE),
        ("uncompressed_size", 1 <= blob.uncompressed_size <= MAX_BLOB_UNCOMPRESSED_SIZE),
        ("uncompressed_size (multiple of 4096)", tarfs or blob.uncompressed_size % 4096 == 0),
        ("ci_compressor", blob.ci_compressor <= max(Compressor)),
        ("ci_offset", blob.ci_offset <= MAX_BLOB_COMPRESSED_SIZE),
        ("ci_compressed_size", blob.ci_compressed_size <= blob.ci_uncompressed_size),
        ("ci_uncompressed_size", _ci_size_fits(blob)),
        ("compressed data size", blob.compressed_data_size >= 0),
    )
    for name, holds in conditions:
        if not holds:
            raise FormatError(f"blob table, entry {position}: {name} is not valid")


def _ci_size_fits(blob: BlobEntry) -> bool:
    if blob.features & _WITHOUT_TABLE:
        return True
    if not blob.features & BlobFeature.CHUNK_INFO_V2:
        no_contexts = not blob.features & _WITH_CONTEXTS
        return no_contexts and blob.ci_uncompressed_size == 16 * blob.chunk_count
    if blob.features & _WITH_CONTEXTS:
        return blob.ci_uncompressed_size >= 24 * blob.chunk_count
    return blob.ci_uncompressed_size == 24 * blob.chunk_count


def _read_prefetch(view: memoryview, extended: ExtendedSuperblock) -> tuple[int, ...]:
    offset, size = extended.prefetch_table_offset, extended.prefetch_table_size
    if not offset or not size:
        return ()
    if offset % 8 or size % 4 or offset + size > len(view):
        raise _bad("prefetch table", f"{size} bytes at {offset}", "8-aligned inside the file")
    if size > MAX_PREFETCH_BYTES:
        raise _bad("prefetch_table_size", size, f"at most {MAX_PREFETCH_BYTES}")
    nids = []
    for position in range(offset, offset + size, 4):
        nid = int.from_bytes(view[position : position + 4], "little")
        if nid == 0:
            break
        nids.append(nid)
    return tuple(nids)


def _bad(field: str, found: object, expected: str) -> FormatError:
    return FormatError(f"bootstrap: {field} is {found}; must be {expected}")
