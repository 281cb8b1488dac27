from __future__ import annotations

import random

import pytest
from tests.support.rafs import blob_entry

from lamina.erofs.chunk_digests import ChunkDigests, ChunkEntries
from lamina.erofs.layout import CHUNK_ENTRY
from lamina.errors import FormatError

BLOBS = [
    blob_entry(chunk_count=3, uncompressed_size=3 * 8192),
    blob_entry(index=1, chunk_count=5, uncompressed_size=5 * 8192),
]


def record(blob: int, index: int) -> bytes:
    digest = bytes([blob, index]) * 16
    return CHUNK_ENTRY.pack(digest, blob, 0, 5000, 5000, 0, index * 8192, 0, index, 0)


EVERY = [record(blob, index) for blob in (0, 1) for index in range(BLOBS[blob].chunk_count)]


def entries_of(records: list[bytes]) -> ChunkEntries:
    table = b"noise" + b"".join(records) + b"more"
    return ChunkEntries(table, 5, len(records) * CHUNK_ENTRY.size, BLOBS)


def test_a_sorted_table_needs_no_index() -> None:
    entries = entries_of(EVERY)
    for blob in (0, 1):
        for index in range(BLOBS[blob].chunk_count):
            assert ChunkDigests(entries, blob).digest(index) == bytes([blob, index]) * 16
    assert entries._index is None


@pytest.mark.parametrize("seed", range(5))
def test_any_order_is_found(seed: int) -> None:
    shuffled = random.Random(seed).sample(EVERY, len(EVERY))
    entries = entries_of(shuffled)
    for blob in (0, 1):
        for index in range(BLOBS[blob].chunk_count):
            entry = ChunkDigests(entries, blob).find(index)
            assert entry is not None
            assert (entry.blob_index, entry.index) == (blob, index)
            assert entry.uncompressed_offset == index * 8192


def test_missing_chunks() -> None:
    entries = entries_of(EVERY[1:5])
    assert ChunkDigests(entries, 0).find(0) is None
    assert ChunkDigests(entries, 1).find(4) is None
    with pytest.raises(FormatError, match="chunk 4 of blob 1"):
        ChunkDigests(entries, 1).digest(4)
    assert ChunkDigests(entries_of([]), 0).find(2) is None


def test_overlaps() -> None:
    digests = ChunkDigests(entries_of([EVERY[4], EVERY[6], EVERY[0]]), 1)
    # Chunks 1 and 3 of blob 1, 5000 bytes each at 8192 and 24576.
    for offset, size, expected in [
        (0, 8192, False),
        (0, 8193, True),
        (8192, 1, True),
        (13191, 1, True),
        (13192, 11384, False),
        (13192, 11385, True),
        (29576, 1 << 40, False),
        (0, 1 << 40, True),
    ]:
        assert digests.overlaps(offset, size) == expected, (offset, size)
    assert not ChunkDigests(entries_of([]), 0).overlaps(0, 1 << 40)


def test_iteration_is_in_table_order() -> None:
    assert [(entry.blob_index, entry.index) for entry in entries_of(EVERY)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4),
    ]  # fmt: skip
