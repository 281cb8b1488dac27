"""Checking a sealed image without any key: what registries, peers and caches can do.

Every stored piece has a leaf, the leaves a Merkle root, and the root stands in the manifest, which
is signed.  So who has ciphertext only can still tell whether it is the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.opening.sealed import leaf_tables
from lamina.registry.repository_source import RepositorySource
from lamina.source.fetcher import Fetcher
from lamina.source.retry import ONCE

if TYPE_CHECKING:
    from lamina.blob.leaf_table import LeafTable
    from lamina.oci.manifest import Descriptor, Manifest
    from lamina.registry.repository import Repository

SPAN_BYTES: Final = 8 << 20

Advance = Callable[[int], None]


class KeylessCheck(NamedTuple):
    """What was found sound: blobs, their pieces, and the stored bytes that were read."""

    blobs: int
    pieces: int
    read_bytes: int


def check_without_key(
    manifest: Manifest, repository: Repository, advance: Advance | None = None
) -> KeylessCheck:
    """Prove the leaf tables of a sealed image, and with *advance* also every stored piece.

    Raises IntegrityError that names the piece, FormatError, FetchError.
    """

    def get(descriptor: Descriptor) -> bytes:
        with repository.open_blob(descriptor) as stream:
            return stream.read()

    tables = leaf_tables(manifest, get)
    read_bytes = 0
    if advance is not None:
        source = Fetcher([RepositorySource(repository)], policy=ONCE)
        read_bytes = sum(check_stored(table, source, advance) for table in tables)
    return KeylessCheck(len(tables), sum(table.piece_count for table in tables), read_bytes)


def check_stored(table: LeafTable, source: Fetcher, advance: Advance) -> int:
    """Read every piece of a sealed blob from *source* and compare it with its leaf.

    Returns the bytes; raises IntegrityError, FormatError, FetchError.
    """
    for span in _spans(table):
        start = table.extent(span[0])[0]
        last_offset, last_size = table.extent(span[-1])
        stored = memoryview(
            source.read_range(table.blob_id, start, last_offset + last_size - start)
        )
        for index in span:
            offset, size = table.extent(index)
            table.check(index, stored[offset - start : offset - start + size])
        advance(len(stored))
    return table.size_bytes


def _spans(table: LeafTable) -> Iterator[range]:
    """Neighbouring pieces, up to 8 MiB together."""
    first, size = 0, 0
    for index in range(table.piece_count):
        length = table.extent(index)[1]
        if size and size + length > SPAN_BYTES:
            yield range(first, index)
            first, size = index, 0
        size += length
    if first < table.piece_count:
        yield range(first, table.piece_count)
