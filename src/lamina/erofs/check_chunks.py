"""Verifies the chunk table of a bootstrap, column by column (RAFS v6 §1.9).

A few thousand entries at a time are judged by their extremes; one by one they are looked at only
where these do not fit, to name the entry at fault.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import accumulate, islice, pairwise
from operator import add, gt, lt, or_
from typing import Final, NamedTuple

from lamina.erofs.layout import CHUNK_ENTRY
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError

SLAB_ENTRIES: Final = 4096
BLOB_SHIFT: Final = 32


class ChunkPlaces:
    """Where the chunks of a table lie, in the order of (blob, chunk); 20 bytes each in memory."""

    def __init__(self, counts: Sequence[int]) -> None:
        """Begin with nothing; *counts* are the numbers of chunks that the blobs have."""
        self._first = list(accumulate(counts, initial=0))
        self.keys = array("Q")
        self.offsets = array("Q")
        self.sizes = array("I")

    def has(self, blob: int, chunk: int, offset: int, size: int) -> bool:
        """Say whether the table has this chunk at this place of its blob, with this size."""
        keys = self.keys
        if not 0 <= blob < len(self._first) - 1:
            return False
        key = blob << BLOB_SHIFT | chunk
        # A table that leaves no chunk out has each where it is to be expected.
        position = self._first[blob] + chunk
        if position >= len(keys) or keys[position] != key:
            position = bisect_left(keys, key)
            if position == len(keys) or keys[position] != key:
                return False
        return self.offsets[position] == offset and self.sizes[position] == size

    def extend(self, slab: _Slab) -> None:
        """Add entries that were checked."""
        shifted = [blob << BLOB_SHIFT for blob in slab.blobs]
        self.keys.extend(map(or_, shifted, slab.chunks))
        self.offsets.extend(slab.offsets)
        self.sizes.extend(slab.sizes)

    @property
    def is_sorted(self) -> bool:
        """Whether each chunk comes after the one before it."""
        return all(map(lt, self.keys, islice(self.keys, 1, None)))

    def sort(self) -> None:
        """Bring the chunks into their order."""
        order = array("Q", sorted(range(len(self.keys)), key=self.keys.__getitem__))
        self.keys, self.offsets, self.sizes = (
            array(column.typecode, map(column.__getitem__, order))
            for column in (self.keys, self.offsets, self.sizes)
        )


class _Limits(NamedTuple):
    """What bounds the chunks of one blob; sizes in bytes."""

    chunk_count: int
    chunk_size: int
    size: int
    stored_size: int
    block_size: int


class _Slab(NamedTuple):
    """Some entries of the table in columns; offsets and sizes in bytes."""

    blobs: Sequence[int]
    chunks: Sequence[int]
    offsets: Sequence[int]
    sizes: Sequence[int]
    ends: Sequence[int]
    stored_ends: Sequence[int]


def check_chunk_table(bootstrap: Bootstrap) -> ChunkPlaces:
    """Check the chunk table and return what is in it.

    Raises:
        FormatError: names the entry that breaks a rule.
    """
    limits = [
        _Limits(
            blob.chunk_count,
            blob.chunk_size,
            blob.uncompressed_size,
            blob.compressed_data_size,
            bootstrap.block_size,
        )
        for blob in bootstrap.blobs
    ]
    places = ChunkPlaces([blob.chunk_count for blob in bootstrap.blobs])
    for first, slab in _slabs(bootstrap):
        if not _all_fit(slab, limits):
            for position, entry in enumerate(zip(*slab, strict=True), first):
                _check_entry(position, entry, limits)
        places.extend(slab)
    if not places.is_sorted:
        places.sort()
        _refuse_repeats(bootstrap, places)
    _refuse_overlaps(places)
    return places


def _slabs(bootstrap: Bootstrap) -> Iterator[tuple[int, _Slab]]:
    """Yield (number of the first entry, entries)."""
    start, count = bootstrap.header.extended.chunk_table_offset, bootstrap.chunk_entries.count
    for first in range(0, count, SLAB_ENTRIES):
        end = min(first + SLAB_ENTRIES, count)
        data = bytes(
            bootstrap.view[start + first * CHUNK_ENTRY.size : start + end * CHUNK_ENTRY.size]
        )
        # An entry is 20 words of 4 bytes, or 10 of 8; see the comment at CHUNK_ENTRY.
        words, longs = _words("I", data), _words("Q", data)
        offsets, sizes = longs[7::10], words[11::20]
        ends = list(map(add, offsets, sizes))
        stored_ends = list(map(add, longs[6::10], words[10::20]))
        yield first, _Slab(words[8::20], words[18::20], offsets, sizes, ends, stored_ends)


def _words(typecode: str, data: bytes) -> array[int]:
    words = array(typecode, data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _all_fit(slab: _Slab, limits: list[_Limits]) -> bool:
    """Judge entries of one blob by their extremes; False if some have to be looked at."""
    blob = max(slab.blobs)
    if blob != min(slab.blobs) or blob >= len(limits):
        return False
    limit = limits[blob]
    return (
        max(slab.chunks) < limit.chunk_count
        and min(slab.sizes) > 0
        and max(slab.sizes) <= limit.chunk_size
        and max(slab.ends) <= limit.size
        and not reduce(or_, slab.offsets) % limit.block_size
        and max(slab.stored_ends) <= limit.stored_size
    )


def _check_entry(position: int, entry: tuple[int, ...], limits: list[_Limits]) -> None:
    blob, chunk, offset, size, end, stored_end = entry
    if blob >= len(limits):
        raise FormatError(f"chunk table, entry {position}: there is no such blob")
    limit = limits[blob]
    if chunk >= limit.chunk_count:
        raise FormatError(f"chunk table, entry {position}: the blob has no chunk {chunk}")
    if not 0 < size <= limit.chunk_size or end > limit.size:
        raise FormatError(f"chunk table, entry {position}: the chunk leaves its blob")
    if offset % limit.block_size:
        raise FormatError(f"chunk table, entry {position}: the chunk is not block-aligned")
    if stored_end > limit.stored_size:
        raise FormatError(f"chunk table, entry {position}: the data leaves the blob file")


def _refuse_repeats(bootstrap: Bootstrap, places: ChunkPlaces) -> None:
    """Raise FormatError if a chunk of the sorted *places* is there more than once."""
    keys = places.keys
    repeated = next((before for before, key in pairwise(keys) if before == key), None)
    if repeated is None:
        return
    numbers = [
        number
        for number, entry in enumerate(bootstrap.chunk_entries)
        if entry.blob_index << BLOB_SHIFT | entry.index == repeated
    ]
    raise FormatError(f"chunk table, entry {numbers[1]}: the chunk is listed twice")


def _refuse_overlaps(places: ChunkPlaces) -> None:
    """Raise FormatError if two chunks share bytes of their blob's uncompressed space."""
    bounds = [0]
    while bounds[-1] < len(places.keys):
        blob = places.keys[bounds[-1]] >> BLOB_SHIFT
        bounds.append(bisect_left(places.keys, blob + 1 << BLOB_SHIFT, bounds[-1]))
    for start, stop in pairwise(bounds):
        offsets, sizes = places.offsets[start:stop], places.sizes[start:stop]
        # Chunks are stored in their order, as a rule.
        if any(map(gt, map(add, offsets, sizes), islice(offsets, 1, None))):
            _find_overlap(places, range(start, stop))


def _find_overlap(places: ChunkPlaces, numbers: range) -> None:
    end = 0
    for number in sorted(numbers, key=places.offsets.__getitem__):
        if places.offsets[number] < end:
            blob, chunk = divmod(places.keys[number], 1 << BLOB_SHIFT)
            raise FormatError(f"chunk table: chunk {chunk} of blob {blob} overlaps another one")
        end = places.offsets[number] + places.sizes[number]
