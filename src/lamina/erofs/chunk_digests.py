"""The chunk table of a bootstrap: the digest and the place of every chunk (RAFS v6 §1.9).

Images of Lamina store the entries of all chunks sorted by (blob, chunk), so an entry is found by
arithmetic.  Others store them in any order and only those that a file refers to; for them an index
is built at the first miss.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from lamina.erofs.layout import CHUNK_ENTRY, BlobEntry, ChunkEntry
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer


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
        self._index: dict[int, int] | None = None
        self._extents: dict[int, tuple[list[int], list[int]]] = {}

    def close(self) -> None:
        """Release the buffer."""
        self._view.release()

    @property
    def is_indexed(self) -> bool:
        """Whether some chunk was not where a sorted table has it, so that all had to be indexed."""
        return self._index is not None

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
        found = self._index.get(blob_index << 32 | chunk_index)
        return None if found is None else self.entry(found)

    def overlaps(self, blob_index: int, offset: int, size_bytes: int) -> bool:
        """Say whether a chunk of the table lies in this range of the blob's uncompressed space."""
        extents = self._extents.get(blob_index)
        if extents is None:
            found = sorted(
                (entry.uncompressed_offset, entry.uncompressed_offset + entry.uncompressed_size)
                for entry in self
                if entry.blob_index == blob_index
            )
            extents = [start for start, _ in found], [end for _, end in found]
            self._extents[blob_index] = extents
        starts, ends = extents
        # Chunks do not overlap each other, so the ends are sorted too.
        return bisect_right(ends, offset) < bisect_left(starts, offset + size_bytes)

    def _build_index(self) -> None:
        with self._lock:
            if self._index is None:
                fields = CHUNK_ENTRY.iter_unpack(self._view)
                self._index = {
                    entry[1] << 32 | entry[8]: number for number, entry in enumerate(fields)
                }


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
                f"Chunk {chunk_index} of blob {self.blob_index} is not in the chunk table."
            )
        return entry.digest

    def overlaps(self, offset: int, size_bytes: int) -> bool:
        """Say whether a chunk of some file lies in this range of the uncompressed space."""
        return self._entries.overlaps(self.blob_index, offset, size_bytes)
