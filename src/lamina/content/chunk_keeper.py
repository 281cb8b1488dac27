"""The chunks of one blob in its cache file: from this node where it has them, else as they arrive.

A chunk that is in the file from before a power cut is verified again; one that another blob of the
node has is copied, or shared where the file system can.  Nothing is marked as ready before it was
verified.  Where else chunks come from is said by those who use this: :mod:`lamina.content.
blob_filler` and :mod:`lamina.content.sequential_filler`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from lamina.blob.piece import Piece
from lamina.blob.table import ChunkTable
from lamina.codec.digest import Digester, digest
from lamina.content.statistics import Statistics
from lamina.erofs.chunk_digests import DigestSource
from lamina.erofs.layout import BLOCK_SIZE, ChunkEntry, round_up
from lamina.store.cache_blob import CacheBlob
from lamina.store.local_chunks import LocalChunks, blob_tag

RUN_BYTES: Final = 1 << 20
"""Neighbours of a pack are joined for one write up to this length."""

Chunks = list[tuple[int, memoryview]]
"""Numbers of chunks, and their verified bytes."""


@dataclass(frozen=True, slots=True)
class BlobParts:
    """What a blob is, and where its chunks are kept.  ``local`` is None where nothing is shared;
    ``doubt`` is told when the chunk table contradicts all that comes.
    """

    table: ChunkTable
    digests: DigestSource
    cache: CacheBlob
    local: LocalChunks | None = None
    doubt: Callable[[], None] | None = None


class ChunkKeeper:
    """Keeps the chunks of one blob.  Threads share it."""

    def __init__(self, parts: BlobParts) -> None:
        """Everything stays the caller's."""
        self._parts = parts
        self._counting = threading.Lock()
        self._tag = blob_tag(parts.cache.path.stem)
        self._kind = Digester(parts.table.entry.digester)
        self.statistics = Statistics()
        """What the blob cost so far."""

    def missing_bytes(self, *, elsewhere: bool) -> int:
        """Return what the chunks that are not ready will take on the disk, in blocks.

        With *elsewhere* those count too that other blobs of this node have.
        """
        parts, total = self._parts, 0
        for chunk in range(parts.table.chunk_count):
            entry = None if parts.cache.is_ready(chunk) else parts.digests.find(chunk)
            # What no file refers to is never written.
            if entry is not None and (elsewhere or not self._is_elsewhere(entry)):
                total += round_up(entry.uncompressed_size, BLOCK_SIZE)
        return total

    def _is_elsewhere(self, entry: ChunkEntry) -> bool:
        return self._parts.local is not None and self._parts.local.knows(entry.digest)

    def get_local(self, chunk: int) -> bool:
        """Make a chunk ready without a source, if that is possible; returns whether it was."""
        parts = self._parts
        doubtful = parts.cache.is_unverified(chunk)
        if parts.local is None and not doubtful:
            return False
        entry = parts.digests.find(chunk)
        extent = parts.table.chunk_extent(chunk)
        if entry is None:
            # No file refers to it, so nothing of it is ever written.
            if parts.digests.overlaps(*extent):
                return False
            parts.cache.put((), range(chunk, chunk + 1))
            return True
        if (entry.uncompressed_offset, entry.uncompressed_size) != extent:
            return False
        if doubtful and self._revalidate(chunk, entry):
            return True
        return parts.local is not None and self._copy(chunk, entry, parts.local)

    def _revalidate(self, chunk: int, entry: ChunkEntry) -> bool:
        """Believe again what the file has from before a power cut, if the digest says so."""
        cache = self._parts.cache
        data = bytearray(entry.uncompressed_size)
        with cache.writing():
            if not cache.is_unverified(chunk):
                return cache.is_ready(chunk)
            count = cache.read_into(entry.uncompressed_offset, memoryview(data))
            if count == len(data) and digest(self._kind, data) == entry.digest:
                cache.mark(chunk)
                self.count(Statistics(salvaged_bytes=count))
                return True
            cache.clear_unverified(chunk)
        return False

    def _copy(self, chunk: int, entry: ChunkEntry, local: LocalChunks) -> bool:
        size, offset = entry.uncompressed_size, entry.uncompressed_offset
        cache, only = self._parts.cache, range(chunk, chunk + 1)
        for data, tag, source_offset in local.candidates(entry.digest, size):
            if digest(self._kind, data) != entry.digest:
                continue
            share = partial(self._share, local, tag, source_offset, offset, data)
            if not cache.take(chunk, offset, size, share):
                cache.put([(offset, data)], only)
            self.count(Statistics(copied_bytes=size))
            return True
        return False

    def _share(
        self, local: LocalChunks, tag: int, source_offset: int, offset: int, data: bytes
    ) -> bool:
        """Have the blocks in common with a neighbour, which may change until they are."""
        cache, again = self._parts.cache, bytearray(len(data))
        if not local.share(tag, source_offset, len(data), cache.fd, offset):
            return False
        return cache.read_into(offset, memoryview(again)) == len(data) and again == data

    def put(self, piece: Piece, chunks: Chunks) -> None:
        """Write the verified chunks of a piece, mark them, and let other blobs of the node know.

        Raises StoreError.
        """
        self._parts.cache.put(self._runs(chunks), range(piece.first, piece.first + piece.count))
        self.count(Statistics(decoded_pieces=1, decoded_bytes=piece.raw_size))
        self._offer(chunks)

    def _offer(self, chunks: Chunks) -> None:
        """Let other blobs of the node know what is here."""
        parts = self._parts
        if parts.local is None:
            return
        for chunk, data in chunks:
            entry = parts.digests.find(chunk)
            if entry is not None and len(data):
                parts.local.add(entry.digest, self._tag, entry.uncompressed_offset)

    def _runs(self, chunks: Chunks) -> Iterator[tuple[int, bytes | memoryview]]:
        """Join neighbours, with the zeros between them, so that a pack costs few writes."""
        parts: list[bytes | memoryview] = []
        start = end = 0
        for chunk, data in chunks:
            offset = self._parts.table.chunk_extent(chunk)[0]
            if parts and (offset != round_up(end, BLOCK_SIZE) or offset - start >= RUN_BYTES):
                yield start, parts[0] if len(parts) == 1 else b"".join(parts)
                parts = []
            if parts:
                parts.append(bytes(offset - end))
            else:
                start = offset
            parts.append(data)
            end = offset + len(data)
        if parts:
            yield start, parts[0] if len(parts) == 1 else b"".join(parts)

    def count(self, more: Statistics) -> None:
        """Add to what the blob cost."""
        with self._counting:
            self.statistics.add(more)
