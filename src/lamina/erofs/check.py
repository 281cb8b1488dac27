"""Verifies every invariant of a bootstrap, and names the first one that is broken (RAFS v6 §1).

Linear in the size of the image in time, without recursion: an image that would make it more is
broken, as its parts would have to overlap.  In memory it takes a byte for 32 of the image and 20
for each chunk.
"""

from __future__ import annotations

from functools import partial
from mmap import MADV_DONTNEED, mmap
from typing import TYPE_CHECKING, Final

from lamina.erofs.check_chunks import check_chunk_table
from lamina.erofs.check_claims import Claims
from lamina.erofs.check_devices import check_devices
from lamina.erofs.check_tree import TreeCheck
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

LARGE_BYTES: Final = 64 << 20


def check_bootstrap(buffer: Buffer) -> None:
    """Verify the whole bootstrap in ``buffer``.

    Raises:
        FormatError: says which inode, entry or field breaks which rule.
    """
    with Bootstrap(buffer) as bootstrap:
        claims = _claim_fixed(bootstrap)
        check_devices(bootstrap)
        _check_super_flags(bootstrap)
        # In tarfs mode there is no table: chunks are blocks of the tar itself.
        is_tarfs = bootstrap.flags & SuperFlag.TARFS_MODE
        places = None if is_tarfs else check_chunk_table(bootstrap)
        tree = TreeCheck(bootstrap, places, claims, partial(_forget_pages, bootstrap))
        tree.run()
        _check_totals(bootstrap, tree)


def _claim_fixed(bootstrap: Bootstrap) -> Claims:
    extended = bootstrap.header.extended
    count = len(bootstrap.blobs)
    slots_end = DEVICE_SLOT_OFFSET + count * DEVICE_SLOT_SIZE
    places = (
        (extended.blob_table_offset, count * BLOB_ENTRY.size, "blob table"),
        (extended.chunk_table_offset, extended.chunk_table_size, "chunk table"),
        (extended.prefetch_table_offset, extended.prefetch_table_size, "prefetch table"),
    )
    if bytes(bootstrap.view[:SUPERBLOCK_OFFSET]).strip(b"\0"):
        raise FormatError("bootstrap: the first 1024 bytes are not zero")
    if bootstrap.root_nid != META_RESERVED >> NID_SHIFT:
        raise FormatError(f"bootstrap: root_nid is {bootstrap.root_nid}; must be 128")
    # Old images give the prefetch table a size but no offset: they have none.
    claims = Claims(bootstrap.size_bytes)
    claims.name(0, slots_end, "superblocks and device slots")
    for start, size, what in places:
        if start and size:
            claims.name(start, start + size, what)
    return claims


def _forget_pages(bootstrap: Bootstrap) -> None:
    """Let go of what was read of a large mapped file: it would count as memory of the process."""
    file = bootstrap.view.obj
    if isinstance(file, mmap) and len(file) > LARGE_BYTES:
        file.madvise(MADV_DONTNEED)


def _check_super_flags(bootstrap: Bootstrap) -> None:
    inlined = all(blob.features & BlobFeature.INLINED_CHUNK_DIGEST for blob in bootstrap.blobs)
    if bootstrap.flags & SuperFlag.INLINED_CHUNK_DIGEST and not inlined:
        raise FormatError("bootstrap: flags promise inlined chunk digests that a blob lacks")
    encrypted = any(blob.features & BlobFeature.ENCRYPTED for blob in bootstrap.blobs)
    if encrypted != bool(bootstrap.flags & SuperFlag.ENCRYPTION_AES_128_XTS):
        raise FormatError("bootstrap: flags and blobs disagree whether data is encrypted")


def _check_totals(bootstrap: Bootstrap, tree: TreeCheck) -> None:
    if bootstrap.inode_count != tree.name_count:
        raise FormatError(
            f"bootstrap: inos is {bootstrap.inode_count}, but the tree has {tree.name_count} names"
        )
    for nid in bootstrap.prefetch_nids:
        if not tree.is_inode(nid):
            raise FormatError(f"prefetch table: inode {nid} is not in the tree")
    if tree.has_xattrs and not bootstrap.flags & SuperFlag.HAS_XATTR:
        raise FormatError("bootstrap: flags deny the extended attributes that are there")
