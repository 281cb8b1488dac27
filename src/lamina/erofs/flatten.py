"""A bootstrap and its blobs as one device: where everything lies, and metadata that say so.

Linux finds the data of an image with device slots on other devices, or, from 6.4 on, behind the
metadata where the slots say.  A virtual disk has one device only, and must be the same to every
kernel: Linux 6.12 shows *metadata* as the content of files when a slot has no device.  So the plain
form has no slots at all: chunk indexes name blocks of the device itself.

Only blocks that a file refers to are data; all between them, as chunks that no file has any more,
are holes.
"""

from __future__ import annotations

import hashlib
import stat
from array import array
from collections.abc import Iterator
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from lamina.codec.crc32c import crc32c
from lamina.erofs.layout import (
    BLOCK_SIZE,
    COMPAT_RAFS_V6,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    EXTENDED_SUPERBLOCK_OFFSET,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    Superblock,
)
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, UnsupportedError

COMPAT_CHECKSUM: Final = 0x1
"""The superblock's checksum is set (``EROFS_FEATURE_COMPAT_SB_CHKSUM``)."""

INCOMPAT_CHUNKED: Final = 0x4
"""Files have chunk indexes, and no device table (``EROFS_FEATURE_INCOMPAT_CHUNKED_FILE``)."""

MOST_BLOCKS: Final = 0xFFFFFFFF
"""Block addresses have 32 bits, and all of them set is a hole (``EROFS_NULL_ADDR``)."""

_CHECKSUM: Final = Struct("<I")
_BLOB_SHIFT: Final = 48


class Layout(Enum):
    """How the blobs are found behind the metadata."""

    PLAIN = "plain"
    """Chunk indexes have addresses on the disk itself; any Linux with EROFS chunks, 5.15 on."""
    NYDUS = "nydus"
    """The metadata are as they were, and device slots say where the blobs are; Linux 6.4 on."""


class DataExtent(NamedTuple):
    """Neighbouring blocks of the disk that are neighbours in one blob too; all in bytes."""

    offset: int
    size_bytes: int
    blob_index: int
    blob_offset: int


class FlatDisk(NamedTuple):
    """One device: ``metadata`` at 0, ``extents`` behind it in their order, else zeros."""

    metadata: bytes
    extents: tuple[DataExtent, ...]
    size_bytes: int
    uuid: bytes


def flatten(bootstrap: Bootstrap, layout: Layout = Layout.PLAIN) -> FlatDisk:
    """Lay out an image as one device.  Reads all inodes, and no data.

    Raises UnsupportedError for blocks of 512 bytes and images that are too large for 32 bits of
    block number; FormatError for what a reader refuses.
    """
    if bootstrap.block_size != BLOCK_SIZE:
        raise UnsupportedError("an image with blocks of 512 bytes (tarfs) cannot be made a disk")
    metadata = bytearray(bootstrap.view)
    bases, blocks = _places(bootstrap, layout)
    runs = array("Q")
    for start, words, size in _chunk_arrays(bootstrap):
        _note_runs(runs, words, size, bootstrap)
        if layout is Layout.PLAIN:
            moved = [_moved(word, bases, blocks) for word in words]
            metadata[start : start + 8 * len(moved)] = Struct(f"<{len(moved)}Q").pack(*moved)
    if layout is Layout.PLAIN:
        _write_superblock(metadata, bootstrap, blocks)
    extents = tuple(_merged(runs, bases, bootstrap))
    return FlatDisk(bytes(metadata), extents, blocks * BLOCK_SIZE, _uuid(bootstrap))


def _places(bootstrap: Bootstrap, layout: Layout) -> tuple[list[int], int]:
    """Return the first block of each blob on the disk, and the number of all blocks."""
    end = bootstrap.size_bytes // BLOCK_SIZE
    bases = []
    for blob, slot in zip(bootstrap.blobs, bootstrap.header.devices, strict=True):
        if layout is Layout.NYDUS:
            if slot.mapped_block < end:
                raise UnsupportedError(
                    "the image has no places for its blobs on one disk",
                    hint="it was made by a Nydus before 2.2; use --layout plain",
                )
            end = slot.mapped_block
        bases.append(end)
        end += blob.uncompressed_size // BLOCK_SIZE
    if end > MOST_BLOCKS:
        raise UnsupportedError("the image is larger than 16 TiB, which EROFS cannot address")
    return bases, end


def _chunk_arrays(bootstrap: Bootstrap) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Yield (place, indexes as 64-bit words, size of the file) of every regular file, once."""
    base = bootstrap.header.meta_offset
    pending, met = [bootstrap.root_nid], {bootstrap.root_nid}
    while pending:
        for entry in bootstrap.readdir(bootstrap.inode(pending.pop())):
            if entry.nid in met:
                continue
            met.add(entry.nid)
            inode = bootstrap.inode(entry.nid)
            if stat.S_ISDIR(inode.mode):
                pending.append(entry.nid)
            elif stat.S_ISREG(inode.mode) and inode.size:
                raw = bootstrap.chunk_array(inode)
                start = inode.offset + inode.inode_size + inode.xattr_size + 7 & -8
                assert start >= base
                yield start, Struct(f"<{len(raw) // 8}Q").unpack(raw), inode.size


def _note_runs(runs: array[int], words: tuple[int, ...], size: int, bootstrap: Bootstrap) -> None:
    """Add (blob and block in one word, number of blocks) of each chunk."""
    step = bootstrap.chunk_size // BLOCK_SIZE
    last = -(-(size - (len(words) - 1) * bootstrap.chunk_size) // BLOCK_SIZE)
    for number, word in enumerate(words, 1):
        blob = (word >> 16 & 0xFF) - 1
        if not 0 <= blob < len(bootstrap.blobs):
            raise FormatError(f"a chunk lies on device {blob + 1}, which the image has not")
        runs.append(blob << _BLOB_SHIFT | word >> 32)
        runs.append(step if number < len(words) else last)


def _moved(word: int, bases: list[int], blocks: int) -> int:
    """Return a chunk index with the address on the disk: device 0, and no number of the chunk."""
    address = (word >> 32) + bases[(word >> 16 & 0xFF) - 1]
    if address >= blocks:
        raise FormatError(f"a chunk lies at block {word >> 32}, behind the end of its blob")
    return address << 32


def _merged(runs: array[int], bases: list[int], bootstrap: Bootstrap) -> Iterator[DataExtent]:
    """Yield the extents in the order of the disk; runs that touch or overlap are joined."""
    current, end = -1, -1
    for place, count in sorted(zip(runs[::2], runs[1::2], strict=True)):
        if place > end:
            if current >= 0:
                yield _extent(current, end, bases, bootstrap)
            current = place
        end = max(end, place + count)
    if current >= 0:
        yield _extent(current, end, bases, bootstrap)


def _extent(start: int, end: int, bases: list[int], bootstrap: Bootstrap) -> DataExtent:
    blob, first = start >> _BLOB_SHIFT, start & (1 << _BLOB_SHIFT) - 1
    count = end - start
    if (first + count) * BLOCK_SIZE > bootstrap.blobs[blob].uncompressed_size:
        raise FormatError(f"a chunk lies behind the end of blob {bootstrap.blobs[blob].blob_id}")
    offset = (bases[blob] + first) * BLOCK_SIZE
    return DataExtent(offset, count * BLOCK_SIZE, blob, first * BLOCK_SIZE)


def _write_superblock(metadata: bytearray, bootstrap: Bootstrap, blocks: int) -> None:
    """Make the superblock that of a device without slots, with what was RAFS's taken away."""
    found = bootstrap.header.superblock
    slots = DEVICE_SLOT_OFFSET + len(bootstrap.blobs) * DEVICE_SLOT_SIZE
    for start, end in (
        (EXTENDED_SUPERBLOCK_OFFSET, slots),
        _table(bootstrap.header.extended.blob_table_offset, len(bootstrap.blobs) * 256),
    ):
        metadata[start:end] = bytes(end - start)
    new = found._replace(
        feature_compat=found.feature_compat & ~COMPAT_RAFS_V6 | COMPAT_CHECKSUM,
        feature_incompat=INCOMPAT_CHUNKED,
        blocks=blocks,
        extra_devices=0,
        device_slot_offset=0,
        uuid=_uuid(bootstrap),
    )
    _put(metadata, new)
    # Of the rest of the first block, with the field itself as zeros; erofs has no final inversion.
    checksum = crc32c(metadata[SUPERBLOCK_OFFSET:BLOCK_SIZE]) ^ 0xFFFFFFFF
    _put(metadata, new._replace(checksum=checksum))


def _table(offset: int, size_bytes: int) -> tuple[int, int]:
    return offset, offset + size_bytes


def _put(metadata: bytearray, superblock: Superblock) -> None:
    SUPERBLOCK.pack_into(metadata, SUPERBLOCK_OFFSET, *superblock)


def _uuid(bootstrap: Bootstrap) -> bytes:
    """Return a UUID of version 8 (RFC 9562) that the metadata decide, so that a disk is
    reproducible.
    """
    own = bootstrap.header.superblock.uuid
    if any(own):
        return own
    made = bytearray(hashlib.sha256(bootstrap.view).digest()[:16])
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)
