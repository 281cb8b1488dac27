"""Bootstraps that are laid out before the blobs they describe are finished.

Laying out a tree takes long, compared to the rest, and needs only the number of blobs and chunks.
So it is done while the chunks are still being compressed; what only the finished blobs can tell is
filled in afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from lamina.build.options import ConvertOptions
from lamina.build.plan import LayerPlan
from lamina.codec.compress import Compressor
from lamina.erofs.layout import (
    BLOB_ENTRY,
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
from lamina.erofs.writer import BootstrapOptions, named_node, write_bootstrap

LOG: Final = logging.getLogger("lamina")


def lay_out(
    root: Node, plans: Sequence[LayerPlan], chunk_count: int, options: ConvertOptions
) -> bytes:
    """Return the bootstrap of a tree over the blobs of ``plans``, with room for ``chunk_count``
    chunk entries.
    """
    blobs = [_unfinished(plan, options) for plan in plans]
    wanted = BootstrapOptions(
        chunk_size=options.chunk_size,
        compressor=Compressor(options.compressor),
        digester=options.digester,
        prefetch=options.prefetch,
    )
    return write_bootstrap(root, blobs, bytes(CHUNK_ENTRY.size * chunk_count), wanted)


def warn_of_missing(root: Node, options: ConvertOptions) -> None:
    """Tell which paths that are to be fetched early the image has not."""
    for path in options.prefetch:
        if named_node(root, path) is None:
            shown = path.decode(errors="backslashreplace")
            LOG.warning("the image has no %s to prefetch; links are not followed", shown)


def fill_in(bootstrap: bytes, blobs: Sequence[BlobEntry], chunk_table: bytes) -> bytes:
    """Return a laid-out bootstrap with the finished blobs, in the same order, and their chunk table
    in it.
    """
    image = bytearray(bootstrap)
    fields = EXTENDED_SUPERBLOCK.unpack_from(image, EXTENDED_SUPERBLOCK_OFFSET)
    extended = ExtendedSuperblock._make(fields)
    assert extended.blob_table_size == BLOB_ENTRY.size * len(blobs)
    assert extended.chunk_table_size == len(chunk_table)
    for index, blob in enumerate(blobs):
        entry = blob._replace(index=index, chunk_size=extended.chunk_size).pack()
        start = extended.blob_table_offset + BLOB_ENTRY.size * index
        image[start : start + BLOB_ENTRY.size] = entry
        slot = DEVICE_SLOT_OFFSET + DEVICE_SLOT_SIZE * index
        image[slot : slot + len(blob.blob_id)] = blob.blob_id.encode()
    start = extended.chunk_table_offset
    image[start : start + len(chunk_table)] = chunk_table
    return bytes(image)


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
