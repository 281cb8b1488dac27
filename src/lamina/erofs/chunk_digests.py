"""The chunk table of a bootstrap: the digest and the place of every chunk (RAFS v6 §1.9).

Images of Lamina store the entries of all chunks sorted by (blob, chunk), so an entry is found by
arithmetic.  Others store them in any order and only those that a file refers to; for them an index
is built at the first miss.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import le
from typing import TYPE_CHECKING, Protocol

from lamina.erofs.layout import (
    CHUNK_ENTRY,
    MAX_BLOBS,
    MAX_CHUNKS_PER_BLOB,
    BlobEntry,
    ChunkEntry,
)
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer


CHUNK_BITS = (MAX_CHUNKS_PER_BLOB - 1).bit_length()
POSITION_BITS = 32
POSITION_MASK = (1 << POSITION_BITS) - 1
MAX_OFFSET = (1 << 64) - 1


class DigestSource(Protocol):
    """What verification needs to know of the chunks of one blob."""

    def find(self, chunk_index: int) -> ChunkEntry | None:
        """Return the entry of a chunk, or None if no file of the image refers to it."""

    def overlaps(self, offset: int, size_bytes: int) -> bool:
        """Say whether a chunk of some file lies in this range of the uncompressed space."""


class ChunkEntries:
    """The chunk table in ``buffer`` at ``offset``, shared by the digests of all blobs."""

    def __init__(
        self, buffer: Buffer, offset: int, size_bytes: int, blobs: Sequence[BlobEntry]
    ) -> None:
        self._view = memoryview(buffer)[offset : offset + size_bytes]
        self.count = size_bytes // CHUNK_ENTRY.size
        self._first = [0]
        for blob in blobs:
            self._first.append(self._first[-1] + blob.chunk_count)
        self._lock = threading.Lock()
        self._index: array[int] | None = None
        self._extents: dict[int, tuple[array[int], array[int]]] = {}

    def close(self) -> None:
        """Release the buffer."""
        self._view.release()

    def __iter__(self) -> Iterator[ChunkEntry]:
        """Yield all entries in the order of the table."""
        return map(ChunkEntry._make, CHUNK_ENTRY.iter_unpack(self._view))

    def entry(self, position: int) -> ChunkEntry:
        """Return the entry at ``position`` in the table."""
        return ChunkEntry._make(CHUNK_ENTRY.unpack_from(self._view, position * CHUNK_ENTRY.size))

    def find(self, blob_index: int, chunk_index: int) -> ChunkEntry | None:
        """Return the entry of a chunk, or None if the table has none."""
        position = self._first[blob_index] + chunk_index
        if position < self.count:
            entry = self.entry(position)
            if entry.blob_index == blob_index and entry.index == chunk_index:
                return entry
        if self._index is None:
            self._build_index()
            assert self._index is not None
        if chunk_index >= MAX_CHUNKS_PER_BLOB:
            return None
        key = blob_index << CHUNK_BITS | chunk_index
        place = bisect_left(self._index, key << POSITION_BITS)
        if place == len(self._index) or self._index[place] >> POSITION_BITS != key:
            return None
        return self.entry(self._index[place] & POSITION_MASK)

    def overlaps(self, blob_index: int, offset: int, size_bytes: int) -> bool:
        """Say whether a chunk of the table lies in this range of the blob's uncompressed space."""
        extents = self._extents.get(blob_index)
        if extents is None:
            extents = self._extents[blob_index] = self._sorted_extents(blob_index)
        starts, ends = extents
        # Chunks do not overlap each other, so the ends are sorted too.
        return bisect_right(ends, offset) < bisect_left(starts, offset + size_bytes)

    def _sorted_extents(self, blob_index: int) -> tuple[array[int], array[int]]:
        starts, ends = array("Q"), array("Q")
        for entry in CHUNK_ENTRY.iter_unpack(self._view):
            if entry[1] == blob_index:
                starts.append(entry[6])
                ends.append(min(entry[6] + entry[4], MAX_OFFSET))
        if all(map(le, starts, islice(starts, 1, None))):
            return starts, ends
        return array("Q", sorted(starts)), array("Q", sorted(ends))

    def _build_index(self) -> None:
        """Note each chunk and its place in one number, ascending: 8 bytes an entry, not 200."""
        with self._lock:
            if self._index is not None:
                return
            index = array("Q")
            for position, entry in enumerate(CHUNK_ENTRY.iter_unpack(self._view)):
                # Others are none of any blob.
                if entry[1] < MAX_BLOBS and entry[8] < MAX_CHUNKS_PER_BLOB:
                    key = entry[1] << CHUNK_BITS | entry[8]
                    index.append(key << POSITION_BITS | position)
            if not all(map(le, index, islice(index, 1, None))):
                index = array("Q", sorted(index))
            self._index = index


class ChunkDigests:
    """The entries of one blob's chunks (see :class:`DigestSource`)."""

    def __init__(self, entries: ChunkEntries, blob_index: int) -> None:
        self._entries = entries
        self.blob_index = blob_index

    def find(self, chunk_index: int) -> ChunkEntry | None:
        """Return the entry of a chunk, or None if no file of the image refers to it."""
        return self._entries.find(self.blob_index, chunk_index)

    def digest(self, chunk_index: int) -> bytes:
        """Return the 32-byte digest of a chunk's plaintext.

        Raises:
            FormatError: the chunk table has no entry for it.
        """
        entry = self.find(chunk_index)
        if entry is None:
            raise FormatError(
                f"chunk {chunk_index} of blob {self.blob_index} is not in the chunk table"
            )
        return entry.digest

    def overlaps(self, offset: int, size_bytes: int) -> bool:
        """Say whether a chunk of some file lies in this range of the uncompressed space."""
        return self._entries.overlaps(self.blob_index, offset, size_bytes)
