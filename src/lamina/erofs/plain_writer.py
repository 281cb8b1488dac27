"""Writer of EROFS file systems without anything of RAFS: one file that any Linux with chunks mounts
(5.15 on), a layer by itself.

It is a bootstrap with one blob of blocks behind it, made flat (:mod:`lamina.erofs.flatten`).  The
data of files lies in whole blocks, in the order of a walk.
"""

from __future__ import annotations

import hashlib
import stat
from array import array
from struct import Struct
from typing import Final, NamedTuple

from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.flatten import flatten
from lamina.erofs.layout import (
    BLOCK_SIZE,
    SUPERBLOCK_OFFSET,
    BlobEntry,
    BlobFeature,
    ChunkIndex,
)
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, lay_out_bootstrap

_UUID: Final = Struct("16s")
_UUID_OFFSET: Final = SUPERBLOCK_OFFSET + 48
_BLOB_ID: Final = "0" * 64
_CHUNK_ENTRY_BYTES: Final = 16


class Extent(NamedTuple):
    """Bytes of a file: the number that says where they are now, and where they go; in bytes."""

    source: int
    size_bytes: int
    offset: int


class PlainLayout(NamedTuple):
    """A file system: ``metadata`` at 0, ``extents`` behind it in their order, else zeros."""

    metadata: bytes
    extents: list[Extent]
    size_bytes: int


def lay_out_plain(root: Node, chunk_size: int, identity: bytes) -> PlainLayout:
    """Lay a tree out, in whose files the place of a chunk index is a number of the caller's.

    The tree has its own indexes afterwards.  *identity* decides the UUID, with the tree.  Raises
    FormatError for what EROFS cannot hold.
    """
    placed: list[Extent] = []
    blocks = 0
    for node in {id(node): node for _, node in root.walk()}.values():
        if stat.S_ISREG(node.mode) and node.size:
            blocks = _place(node, chunk_size, blocks, placed)
    options = BootstrapOptions(chunk_size, Compressor.NONE, Digester.SHA256)
    entries = [_blob(chunk_size, blocks, len(placed))] if placed else []
    image = lay_out_bootstrap(root, entries, 0, options)
    _UUID.pack_into(image, _UUID_OFFSET, _uuid(image, identity))
    with Bootstrap(image) as bootstrap:
        flat = flatten(bootstrap)
    base = len(flat.metadata)
    extents = [extent._replace(offset=base + extent.offset) for extent in placed]
    return PlainLayout(flat.metadata, extents, flat.size_bytes)


def _place(node: Node, chunk_size: int, blocks: int, placed: list[Extent]) -> int:
    """Give the chunks of a file the next blocks; return the number of all so far."""
    left = node.size
    indexes = bytearray()
    for source in array("Q", bytes(node.chunks)):
        size = min(chunk_size, left)
        left -= size
        placed.append(Extent(source, size, blocks * BLOCK_SIZE))
        indexes += ChunkIndex(0, 0, blocks).pack()
        blocks += -(-size // BLOCK_SIZE)
    node.chunks = indexes
    return blocks


def _blob(chunk_size: int, blocks: int, chunks: int) -> BlobEntry:
    size = blocks * BLOCK_SIZE
    table = _CHUNK_ENTRY_BYTES * chunks
    # fmt: off
    return BlobEntry(_BLOB_ID, 0, chunk_size, chunks, Compressor.NONE, Digester.SHA256,
                     BlobFeature.ALIGNED, size, size, 0, Compressor.NONE, 0, table, table)
    # fmt: on


def _uuid(image: bytearray, identity: bytes) -> bytes:
    """Return a UUID of version 8 (RFC 9562)."""
    made = bytearray(hashlib.sha256(hashlib.sha256(image).digest() + identity).digest()[:16])
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)
