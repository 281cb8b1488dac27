"""Writer of a bootstrap: a tree of nodes -> EROFS image with RAFS v6 metadata.

Two passes over the tree: the first gives every inode its place, the second writes inodes and
directories, which need the places.  Inodes come in the order of a walk (a directory, its other
children, then its subdirectories), which is the order in which they are read again.  The result
depends on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.layout import (
    BLOB_ENTRY,
    BLOCK_SIZE,
    CHUNK_ENTRY,
    COMPAT_RAFS_V6,
    DEVICE_ALIGNMENT,
    DEVICE_SLOT,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    EXTENDED_SUPERBLOCK,
    EXTENDED_SUPERBLOCK_OFFSET,
    INCOMPAT_CHUNKED_DEVICE_TABLE,
    MAGIC,
    MAX_BLOBS,
    MAX_CHUNK_SIZE,
    META_RESERVED,
    MIN_CHUNK_SIZE,
    ROOT_NID,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    BlobEntry,
    BlobFeature,
    ExtendedSuperblock,
    SuperFlag,
    round_up,
)
from lamina.erofs.placement import Placement
from lamina.erofs.superblock import COMPRESSOR_FLAGS, DIGESTER_FLAGS
from lamina.erofs.tree import Node
from lamina.errors import FormatError


@dataclass(frozen=True, slots=True)
class BootstrapOptions:
    """What a bootstrap says beside its tree.

    ``compressor`` and ``digester`` are the defaults in the superblock (each blob has its own);
    ``prefetch`` are absolute paths that are to be fetched ahead, in this order (``b"/"``:
    everything).
    """

    chunk_size: int = 1 << 20
    compressor: Compressor = Compressor.ZSTD
    digester: Digester = Digester.BLAKE3
    prefetch: Sequence[bytes] = ()


def write_bootstrap(
    root: Node, blobs: Sequence[BlobEntry], chunk_table: bytes, options: BootstrapOptions
) -> bytearray:
    """Return the image of the tree under ``root``.

    ``blobs`` are numbered by their position (their ``index`` and ``chunk_size`` are set here).
    ``chunk_table`` holds the 80-byte entries of all chunks that the tree refers to (RAFS v6 §1.9),
    best sorted by (blob, chunk).

    Raises:
        FormatError: a node cannot be represented (names the path), or there are too many blobs.
    """
    image = lay_out_bootstrap(root, blobs, len(chunk_table), options)
    image += chunk_table
    image += bytes(-len(image) % BLOCK_SIZE)
    return image


def lay_out_bootstrap(
    root: Node, blobs: Sequence[BlobEntry], chunk_table_size: int, options: BootstrapOptions
) -> bytearray:
    """Return the image of the tree under ``root`` up to its chunk table, which will have
    ``chunk_table_size`` bytes, and zeros up to the next block.

    Raises as :func:`write_bootstrap`.
    """
    chunk_size = options.chunk_size
    entries = _checked_entries(blobs, chunk_table_size, chunk_size)
    placement = Placement(root, chunk_size)
    prefetch = _prefetch_table(placement, root, options.prefetch) if entries else b""
    tables = b"".join([entry.pack() for entry in entries]) + prefetch
    table_offset = round_up(DEVICE_SLOT_OFFSET + DEVICE_SLOT_SIZE * len(entries), BLOCK_SIZE)
    meta_offset = round_up(table_offset + len(tables), BLOCK_SIZE) if entries else 0
    root_offset = meta_offset + META_RESERVED
    image = placement.emit(root_offset // BLOCK_SIZE)
    image[:0] = bytes(root_offset)
    chunk_table_offset = len(image)
    total = round_up(chunk_table_offset + chunk_table_size, BLOCK_SIZE)
    extended = ExtendedSuperblock(
        flags=_flags(entries, options, has_xattrs=placement.has_xattrs),
        blob_table_offset=table_offset,
        blob_table_size=BLOB_ENTRY.size * len(entries),
        chunk_size=chunk_size,
        chunk_table_offset=chunk_table_offset,
        chunk_table_size=chunk_table_size,
        prefetch_table_offset=table_offset + BLOB_ENTRY.size * len(entries) if prefetch else 0,
        prefetch_table_size=len(prefetch),
    )
    superblock = _superblock(placement.name_count, meta_offset, entries)
    SUPERBLOCK.pack_into(image, SUPERBLOCK_OFFSET, *superblock)
    EXTENDED_SUPERBLOCK.pack_into(image, EXTENDED_SUPERBLOCK_OFFSET, *extended)
    slots = _device_slots(entries, total)
    image[DEVICE_SLOT_OFFSET : DEVICE_SLOT_OFFSET + len(slots)] = slots
    image[table_offset : table_offset + len(tables)] = tables
    return image


def _checked_entries(
    blobs: Sequence[BlobEntry], chunk_table_size: int, chunk_size: int
) -> list[BlobEntry]:
    if chunk_size & (chunk_size - 1) or not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE:
        raise FormatError(f"chunk size {chunk_size} is no power of two from 4 KiB to 16 MiB")
    if len(blobs) > MAX_BLOBS:
        raise FormatError(
            f"the image needs {len(blobs)} blobs; at most {MAX_BLOBS} fit",
            hint="flatten some of its layers first",
        )
    if chunk_table_size % CHUNK_ENTRY.size:
        raise FormatError("the chunk table does not consist of whole entries")
    return [blob._replace(index=index, chunk_size=chunk_size) for index, blob in enumerate(blobs)]


def named_node(root: Node, path: bytes) -> Node | None:
    """Return the node of a path, or None; no link is followed."""
    node: Node | None = root
    for part in path.split(b"/"):
        if part:
            node = node.child(part) if node else None
    return node


def _prefetch_table(placement: Placement, root: Node, paths: Sequence[bytes]) -> bytes:
    """Return the numbers of the named nodes, without missing ones and those below another."""
    chosen: list[tuple[bytes, ...]] = []
    table = []
    for path in paths:
        parts = tuple(part for part in path.split(b"/") if part)
        node = named_node(root, path)
        covered = any(parts[: len(above)] == above for above in chosen)
        if node is not None and not covered:
            chosen.append(parts)
            table.append(placement.nid(node).to_bytes(4, "little"))
    return b"".join(table)


def _superblock(
    name_count: int, meta_offset: int, entries: Sequence[BlobEntry]
) -> tuple[int | bytes, ...]:
    blocks = sum(entry.uncompressed_size // BLOCK_SIZE for entry in entries)
    # fmt: off
    return (
        MAGIC, 0, COMPAT_RAFS_V6, BLOCK_SIZE.bit_length() - 1, 0, ROOT_NID, name_count, 0, 0,
        blocks, meta_offset // BLOCK_SIZE, 0, bytes(16), bytes(16), INCOMPAT_CHUNKED_DEVICE_TABLE,
        0, len(entries), DEVICE_SLOT_OFFSET // DEVICE_SLOT_SIZE, 0,
    )
    # fmt: on


def _flags(entries: Sequence[BlobEntry], options: BootstrapOptions, *, has_xattrs: bool) -> int:
    flags = SuperFlag.EXPLICIT_UID_GID | SuperFlag.ENCRYPTION_NONE
    flags |= {kind: flag for flag, kind in COMPRESSOR_FLAGS.items()}[options.compressor]
    flags |= {kind: flag for flag, kind in DIGESTER_FLAGS.items()}[options.digester]
    if has_xattrs:
        flags |= SuperFlag.HAS_XATTR
    if all(entry.features & BlobFeature.INLINED_CHUNK_DIGEST for entry in entries):
        flags |= SuperFlag.INLINED_CHUNK_DIGEST
    return flags


def _device_slots(entries: Sequence[BlobEntry], bootstrap_size: int) -> bytes:
    """Return the slots, with the addresses the blobs would have on one flat device."""
    slots = []
    position = bootstrap_size
    for entry in entries:
        blocks = entry.uncompressed_size // BLOCK_SIZE
        position = round_up(position, DEVICE_ALIGNMENT)
        if blocks > 0xFFFFFFFF:
            raise FormatError(f"blob {entry.blob_id} is too large for 32-bit block addresses")
        mapped = position // BLOCK_SIZE
        # An image beyond 16 TiB cannot be flattened to one device; its blobs still work as devices
        # of their own.
        slots.append(
            DEVICE_SLOT.pack(entry.blob_id.encode(), blocks, mapped if mapped <= 0xFFFFFFFF else 0)
        )
        position += blocks * BLOCK_SIZE
    return b"".join(slots)
