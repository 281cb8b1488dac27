"""Verifies the device slots of a bootstrap, by which a kernel finds the blobs (RAFS v6 §1.5).

A slot may map its blob into the addresses of the primary device.  A kernel then reads whatever lies
at these from the blob, the names of a directory too, so they must be behind all metadata.
"""

from __future__ import annotations

from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError

_LEGACY_BLOCKS = 4096


def check_devices(bootstrap: Bootstrap) -> None:
    """Check the slots against the blob table, and that none of them lies on top of the metadata.

    Raises:
        FormatError: names the slot.
    """
    block_size = bootstrap.block_size
    position = bootstrap.size_bytes
    total = 0
    for index, (slot, blob) in enumerate(
        zip(bootstrap.header.devices, bootstrap.blobs, strict=True)
    ):
        if slot.tag != blob.blob_id.encode():
            raise FormatError(f"device slot {index}: its tag is not the id in the blob table")
        if slot.blocks != blob.uncompressed_size // block_size or slot.blocks == 0:
            raise FormatError(f"device slot {index}: {slot.blocks} blocks do not fit the blob")
        total += slot.blocks
        if slot.mapped_block == 0:
            continue
        if slot.mapped_block * block_size < position:
            raise FormatError(f"device slot {index}: its mapped address overlaps what is before it")
        position = (slot.mapped_block + slot.blocks) * block_size
    blocks = bootstrap.header.superblock.blocks
    if blocks not in (total & 0xFFFFFFFF, _LEGACY_BLOCKS):
        raise FormatError(f"bootstrap: blocks is {blocks}, but the blobs have {total}")
