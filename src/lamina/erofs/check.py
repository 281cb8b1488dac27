"""Verifies every invariant of a bootstrap, and names the first one that is broken (RAFS v6 §1).

Linear in the size of the image in time and memory, without recursion: an image that would make it
more is broken, as its parts would have to overlap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.erofs.check_tree import ChunkPlaces, TreeCheck
from lamina.erofs.layout import (
    BLOB_ENTRY,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    META_RESERVED,
    NID_SHIFT,
    SUPERBLOCK_OFFSET,
    BlobFeature,
    SuperFlag,
)
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LEGACY_BLOCKS = 4096


def check_bootstrap(buffer: Buffer) -> None:
    """Verify the whole bootstrap in ``buffer``.

    Raises:
        FormatError: says which inode, entry or field breaks which rule.
    """
    with Bootstrap(buffer) as bootstrap:
        regions = _fixed_regions(bootstrap)
        _check_devices(bootstrap)
        _check_super_flags(bootstrap)
        places = _check_chunk_table(bootstrap)
        tree = TreeCheck(bootstrap, places)
        tree.run()
        _check_totals(bootstrap, tree)
        _check_overlaps(regions + tree.regions)


def _fixed_regions(bootstrap: Bootstrap) -> list[tuple[int, int, str]]:
    extended = bootstrap.header.extended
    count = len(bootstrap.blobs)
    slots_end = DEVICE_SLOT_OFFSET + count * DEVICE_SLOT_SIZE
    places = (
        (0, slots_end, "superblocks and device slots"),
        (extended.blob_table_offset, count * BLOB_ENTRY.size, "blob table"),
        (extended.chunk_table_offset, extended.chunk_table_size, "chunk table"),
        (extended.prefetch_table_offset, extended.prefetch_table_size, "prefetch table"),
    )
    if bytes(bootstrap.view[:SUPERBLOCK_OFFSET]).strip(b"\0"):
        raise FormatError("Bootstrap: the first 1024 bytes are not zero.")
    if bootstrap.root_nid != META_RESERVED >> NID_SHIFT:
        raise FormatError(f"Bootstrap: root_nid is {bootstrap.root_nid}; must be 128.")
    # Old images give the prefetch table a size but no offset: they have none.
    return [(start, start + size, name) for start, size, name in places if size and start + size]


def _check_devices(bootstrap: Bootstrap) -> None:
    block_size = bootstrap.block_size
    position = bootstrap.size_bytes
    total = 0
    for index, (slot, blob) in enumerate(
        zip(bootstrap.header.devices, bootstrap.blobs, strict=True)
    ):
        if slot.tag != blob.blob_id.encode():
            raise FormatError(f"Device slot {index}: its tag is not the id in the blob table.")
        if slot.blocks != blob.uncompressed_size // block_size or slot.blocks == 0:
            raise FormatError(f"Device slot {index}: {slot.blocks} blocks do not fit the blob.")
        total += slot.blocks
        if slot.mapped_block == 0:
            continue
        if slot.mapped_block * block_size < position:
            raise FormatError(
                f"Device slot {index}: its mapped address overlaps what is before it."
            )
        position = (slot.mapped_block + slot.blocks) * block_size
    blocks = bootstrap.header.superblock.blocks
    if blocks not in (total & 0xFFFFFFFF, _LEGACY_BLOCKS):
        raise FormatError(f"Bootstrap: blocks is {blocks}, but the blobs have {total}.")


def _check_super_flags(bootstrap: Bootstrap) -> None:
    inlined = all(blob.features & BlobFeature.INLINED_CHUNK_DIGEST for blob in bootstrap.blobs)
    if bootstrap.flags & SuperFlag.INLINED_CHUNK_DIGEST and not inlined:
        raise FormatError("Bootstrap: flags promise inlined chunk digests that a blob lacks.")
    encrypted = any(blob.features & BlobFeature.ENCRYPTED for blob in bootstrap.blobs)
    if encrypted != bool(bootstrap.flags & SuperFlag.ENCRYPTION_AES_128_XTS):
        raise FormatError("Bootstrap: flags and blobs disagree whether data is encrypted.")


def _check_chunk_table(bootstrap: Bootstrap) -> ChunkPlaces:
    """Check the chunk table; return blob << 32 | chunk -> (offset, size) in bytes."""
    places: ChunkPlaces = {}
    if bootstrap.flags & SuperFlag.TARFS_MODE:
        return places
    blobs = bootstrap.blobs
    for position, entry in enumerate(bootstrap.chunk_entries):
        if entry.blob_index >= len(blobs):
            raise FormatError(f"Chunk table, entry {position}: there is no such blob.")
        blob = blobs[entry.blob_index]
        if entry.index >= blob.chunk_count:
            raise FormatError(
                f"Chunk table, entry {position}: the blob has no chunk {entry.index}."
            )
        end = entry.uncompressed_offset + entry.uncompressed_size
        if not 0 < entry.uncompressed_size <= blob.chunk_size or end > blob.uncompressed_size:
            raise FormatError(f"Chunk table, entry {position}: the chunk leaves its blob.")
        if entry.uncompressed_offset % bootstrap.block_size:
            raise FormatError(f"Chunk table, entry {position}: the chunk is not block-aligned.")
        if entry.compressed_offset + entry.compressed_size > blob.compressed_data_size:
            raise FormatError(f"Chunk table, entry {position}: the data leaves the blob file.")
        key = entry.blob_index << 32 | entry.index
        if key in places:
            raise FormatError(f"Chunk table, entry {position}: the chunk is listed twice.")
        places[key] = entry.uncompressed_offset, entry.uncompressed_size
    _check_chunk_overlaps(bootstrap, places)
    return places


def _check_chunk_overlaps(bootstrap: Bootstrap, places: ChunkPlaces) -> None:
    ends = [0] * len(bootstrap.blobs)
    for key, (offset, size) in sorted(places.items(), key=lambda item: item[1]):
        blob, chunk = key >> 32, key & 0xFFFFFFFF
        if offset < ends[blob]:
            raise FormatError(f"Chunk table: chunk {chunk} of blob {blob} overlaps another one.")
        ends[blob] = offset + size


def _check_totals(bootstrap: Bootstrap, tree: TreeCheck) -> None:
    if bootstrap.inode_count != tree.name_count:
        raise FormatError(
            f"Bootstrap: inos is {bootstrap.inode_count}, but the tree has {tree.name_count} names."
        )
    for nid in bootstrap.prefetch_nids:
        if nid not in tree.names:
            raise FormatError(f"Prefetch table: inode {nid} is not in the tree.")
    if tree.has_xattrs and not bootstrap.flags & SuperFlag.HAS_XATTR:
        raise FormatError("Bootstrap: flags deny the extended attributes that are there.")


def _check_overlaps(regions: list[tuple[int, int, str]]) -> None:
    regions.sort()
    end, before = 0, ""
    for start, region_end, name in regions:
        if start < end:
            raise FormatError(f"Bootstrap: {name} at offset {start} overlaps {before}.")
        end, before = region_end, name
