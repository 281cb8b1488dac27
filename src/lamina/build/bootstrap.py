"""Bootstraps that are laid out before the blobs they describe are finished.

Laying out a tree takes long, compared to the rest, and needs only the number of blobs and chunks.
So it is done while the chunks are still being compressed; what only the finished blobs can tell is
filled in afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lamina.build.options import ConvertOptions
from lamina.build.plan import LayerPlan
from lamina.codec.compress import Compressor
from lamina.erofs.layout import (
    BLOB_ENTRY,
    BLOCK_SIZE,
    CHUNK_ENTRY,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    EXTENDED_SUPERBLOCK,
    EXTENDED_SUPERBLOCK_OFFSET,
    PLACEHOLDER_BLOB_ID,
    BlobEntry,
    ExtendedSuperblock,
)
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, lay_out_bootstrap, named_node

BLOB_INDEX_OFFSET = 32


def lay_out(
    root: Node, plans: Sequence[LayerPlan], chunk_count: int, options: ConvertOptions
) -> bytearray:
    """Return the bootstrap of a tree over the blobs of ``plans``, up to its table of chunks, which
    will have ``chunk_count``.
    """
    blobs = [_unfinished(plan, options) for plan in plans]
    wanted = BootstrapOptions(
        chunk_size=options.chunk_size,
        compressor=Compressor(options.compressor),
        digester=options.digester,
        prefetch=options.prefetch,
    )
    return lay_out_bootstrap(root, blobs, CHUNK_ENTRY.size * chunk_count, wanted)


def missing_paths(root: Node, options: ConvertOptions) -> list[bytes]:
    """Return the paths that are to be fetched early and that the image has not."""
    return [path for path in options.prefetch if named_node(root, path) is None]


def fill_in(
    image: bytearray, blobs: Sequence[BlobEntry], chunk_tables: Iterable[bytes | bytearray]
) -> bytearray:
    """Return a laid-out bootstrap after the finished blobs were written into it, and the chunk
    entries of each, in the same order, were appended.
    """
    fields = EXTENDED_SUPERBLOCK.unpack_from(image, EXTENDED_SUPERBLOCK_OFFSET)
    extended = ExtendedSuperblock._make(fields)
    assert extended.blob_table_size == BLOB_ENTRY.size * len(blobs)
    for index, blob in enumerate(blobs):
        entry = blob._replace(index=index, chunk_size=extended.chunk_size).pack()
        start = extended.blob_table_offset + BLOB_ENTRY.size * index
        image[start : start + BLOB_ENTRY.size] = entry
        slot = DEVICE_SLOT_OFFSET + DEVICE_SLOT_SIZE * index
        image[slot : slot + len(blob.blob_id)] = blob.blob_id.encode()
    for index, table in enumerate(chunk_tables):
        start = len(image)
        image += table
        set_blob_index(image, start, index)
    assert len(image) == extended.chunk_table_offset + extended.chunk_table_size
    image += bytes(-len(image) % BLOCK_SIZE)
    return image


def chunk_table_offset(image: bytearray) -> int:
    """Return where the table of chunks of a bootstrap begins."""
    fields = EXTENDED_SUPERBLOCK.unpack_from(image, EXTENDED_SUPERBLOCK_OFFSET)
    return ExtendedSuperblock._make(fields).chunk_table_offset


def set_blob_index(entries: bytearray, start: int, blob_index: int) -> None:
    """Give the 80-byte chunk entries from ``start`` on another blob index (RAFS v6 §1.9)."""
    count = (len(entries) - start) // CHUNK_ENTRY.size
    for place, byte in enumerate(blob_index.to_bytes(4, "little"), start + BLOB_INDEX_OFFSET):
        entries[place :: CHUNK_ENTRY.size] = bytes([byte]) * count


def _unfinished(plan: LayerPlan, options: ConvertOptions) -> BlobEntry:
    return BlobEntry(
        blob_id=PLACEHOLDER_BLOB_ID,
        index=0,
        chunk_size=options.chunk_size,
        chunk_count=plan.chunk_count,
        compressor=options.compressor,
        digester=options.digester,
        features=0,
        compressed_size=0,
        uncompressed_size=plan.uncompressed_size,
        toc_size=0,
        ci_compressor=0,
        ci_offset=0,
        ci_compressed_size=0,
        ci_uncompressed_size=0,
    )
