"""Writer of the metadata of an EROFS file system whose data is an uncompressed tar archive (tarfs).

Data in an archive begins at multiples of 512 bytes, so that is the size of a block.  The archive is
the device of the file system: a file or disk beside it, or what follows it in the same one; the
device slot says where that would be.

Sources: the Linux kernel's ``fs/erofs/erofs_fs.h`` and ``super.c`` (``erofs_scan_devices``); what
``mkfs.erofs --tar=i`` of erofs-utils makes.
"""

from __future__ import annotations

import hashlib
import stat
from array import array
from typing import Final

from lamina.codec.crc32c import crc32c
from lamina.erofs.layout import (
    DEVICE_SLOT,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    INCOMPAT_CHUNKED_DEVICE_TABLE,
    MAGIC,
    META_RESERVED,
    ROOT_NID,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    ChunkIndex,
    Superblock,
)
from lamina.erofs.placement import Placement
from lamina.erofs.tree import Node
from lamina.errors import FormatError, UnsupportedError

TAR_BLOCK_BYTES: Final = 512
_BLOCK_BITS: Final = 9
_ALIGNMENT: Final = 4096
_MOST_BLOCKS: Final = 0xFFFFFFFF
_COMPAT_CHECKSUM: Final = 0x1


def lay_out_tar_index(root: Node, chunk_size: int, tar_bytes: int, identity: bytes) -> bytes:
    """Return the file system of a tree, in whose files the place of a chunk index is one in the
    archive, which has *tar_bytes*.  It ends at a multiple of 4096 bytes.

    The tree has its own indexes afterwards.  *identity* decides the UUID, with the tree.  Raises
    FormatError for what EROFS cannot hold, UnsupportedError for archives of 2 TiB and more.
    """
    if tar_bytes > _MOST_BLOCKS * TAR_BLOCK_BYTES - (1 << 32):
        raise UnsupportedError("the archive is larger than blocks of 512 bytes can address")
    for node in {id(node): node for _, node in root.walk()}.values():
        if stat.S_ISREG(node.mode) and node.size:
            _index(node, tar_bytes)
    placement = Placement(root, chunk_size, TAR_BLOCK_BYTES)
    image = bytearray(META_RESERVED)
    image += placement.emit(META_RESERVED // TAR_BLOCK_BYTES)
    image += bytes(-len(image) % _ALIGNMENT)
    _write_superblock(image, placement.name_count, tar_bytes, identity)
    return bytes(image)


def _index(node: Node, tar_bytes: int) -> None:
    """Make the places of the chunks of a file addresses on the device."""
    indexes = bytearray()
    for place in array("Q", bytes(node.chunks)):
        if place % TAR_BLOCK_BYTES or place + node.size > tar_bytes + node.size:
            raise FormatError(f"data of a file lies at byte {place} of the archive")
        indexes += ChunkIndex(0, 0, place // TAR_BLOCK_BYTES).pack()
    node.chunks = indexes


def _write_superblock(image: bytearray, names: int, tar_bytes: int, identity: bytes) -> None:
    own_blocks = len(image) // TAR_BLOCK_BYTES
    tar_blocks = -(-tar_bytes // TAR_BLOCK_BYTES)
    DEVICE_SLOT.pack_into(image, DEVICE_SLOT_OFFSET, b"", tar_blocks, own_blocks)
    new = Superblock(
        magic=MAGIC,
        checksum=0,
        feature_compat=_COMPAT_CHECKSUM,
        block_bits=_BLOCK_BITS,
        extension_slots=0,
        root_nid=ROOT_NID,
        inode_count=names,
        build_time=0,
        build_time_ns=0,
        blocks=own_blocks,
        meta_block=0,
        xattr_block=0,
        uuid=_uuid(image, identity),
        volume_name=bytes(16),
        feature_incompat=INCOMPAT_CHUNKED_DEVICE_TABLE,
        u1=0,
        extra_devices=1,
        device_slot_offset=DEVICE_SLOT_OFFSET // DEVICE_SLOT_SIZE,
        directory_block_bits=0,
    )
    SUPERBLOCK.pack_into(image, SUPERBLOCK_OFFSET, *new)
    # Of what follows to the end of the block that it is in, of which a superblock behind the first
    # block has one of its own; erofs has no final inversion.
    end = -(-(SUPERBLOCK_OFFSET + SUPERBLOCK.size) // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
    checksum = crc32c(bytes(image[SUPERBLOCK_OFFSET:end])) ^ 0xFFFFFFFF
    SUPERBLOCK.pack_into(image, SUPERBLOCK_OFFSET, *new._replace(checksum=checksum))


def _uuid(image: bytearray, identity: bytes) -> bytes:
    """Return a UUID of version 8 (RFC 9562)."""
    made = bytearray(hashlib.sha256(hashlib.sha256(image).digest() + identity).digest()[:16])
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)
