"""Deduplication, storage order and packs."""

from __future__ import annotations

import hashlib
import itertools
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.build.plan import (
    SEGMENT_BYTES,
    KnownChunks,
    LayerPlan,
    encode_references,
    plan_layer,
    segments,
)
from lamina.build.scan import LayerScan
from lamina.errors import FormatError

CHUNK = 8192


def scan_of(chunks: list[tuple[int, int]]) -> LayerScan:
    """A scan of chunks given as (content, size); equal ones are equal chunks."""
    scan = LayerScan(CHUNK)
    scan.digests = b"".join(hashlib.sha256(b"%d %d" % chunk).digest() for chunk in chunks)
    scan.chunk_sizes = array("I", [size for _, size in chunks])
    offsets = itertools.accumulate((size for _, size in chunks), initial=512)
    scan.chunk_offsets = array("Q", list(offsets)[:-1])
    return scan


def pieces(plan: LayerPlan) -> list[list[int]]:
    """The scan's chunk numbers, a piece at a time."""
    numbers = iter(plan.chunks)
    return [list(itertools.islice(numbers, count)) for count in plan.piece_counts]


def test_packs_stay_open_across_full_chunks() -> None:
    scan = scan_of([(0, 100), (1, CHUNK), (2, 200), (3, CHUNK), (4, 8000), (5, 50)])
    plan = plan_layer(0, scan, KnownChunks(), CHUNK)
    assert pieces(plan) == [[1], [3], [0, 2], [4, 5]]
    assert list(plan.addresses) == [0, 8192, 16384, 20480, 24576, 32768]
    assert plan.uncompressed_size == 36864


def test_no_packs() -> None:
    scan = scan_of([(0, 100), (1, CHUNK), (2, 200)])
    assert pieces(plan_layer(0, scan, KnownChunks(), 0)) == [[0], [1], [2]]


def test_chunks_larger_than_a_pack_are_alone() -> None:
    scan = scan_of([(0, 100), (1, 5000), (2, 200), (3, 4096)])
    assert pieces(plan_layer(0, scan, KnownChunks(), 4096)) == [[1], [0, 2], [3]]


def test_duplicates_within_and_across_layers() -> None:
    known = KnownChunks()
    first = scan_of([(0, CHUNK), (1, CHUNK), (0, CHUNK)])
    second = scan_of([(2, CHUNK), (1, CHUNK), (2, CHUNK)])
    plans = [plan_layer(0, first, known, CHUNK), plan_layer(1, second, known, CHUNK)]
    assert [plan.chunk_count for plan in plans] == [2, 1]
    assert [plan.lower_layers for plan in plans] == [[], [0]]
    assert [plan.new_bytes for plan in plans] == [2 * CHUNK, CHUNK]
    encoded = encode_references(plans[1].references, plans, {0: 4, 1: 0})
    assert encoded[:8] == bytes([0, 0, 1, 0, 0, 0, 0, 0])
    assert encoded[8:16] == bytes([1, 0, 5, 0, 2, 0, 0, 0])
    assert encoded[16:] == encoded[:8]


def test_large_chunk_numbers_are_split_over_the_index() -> None:
    plan = plan_layer(0, scan_of([(i, 1) for i in range(70_000)]), KnownChunks(), 0)
    last = encode_references(plan.references[-1:], [plan], {0: 0})
    number = 69_999
    assert last[0] | last[1] << 8 | last[3] << 16 == number
    assert int.from_bytes(last[4:], "little") == number


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, CHUNK)), max_size=60),
    st.sampled_from((0, 4096, CHUNK)),
)
def test_every_plan_holds_every_chunk_once(chunks: list[tuple[int, int]], pack_size: int) -> None:
    scan = scan_of(chunks)
    plan = plan_layer(0, scan, KnownChunks(), pack_size)
    digests = [scan.digests[i : i + 32] for i in range(0, len(scan.digests), 32)]
    own = plan.digests(scan)
    assert len(own) == 32 * len(set(digests))
    assert {own[i : i + 32] for i in range(0, len(own), 32)} == set(digests)
    for members in pieces(plan):
        size = sum(scan.chunk_sizes[number] for number in members)
        assert len(members) == 1 or size <= pack_size
    # Every reference leads to a chunk of the same digest and size.
    encoded = encode_references(plan.references, [plan], {0: 0})
    for number, digest in enumerate(digests):
        word = int.from_bytes(encoded[8 * number : 8 * number + 8], "little")
        index = word & 0xFFFF | (word >> 24 & 0xFF) << 16
        assert own[32 * index : 32 * index + 32] == digest
        assert plan.addresses[index] == word >> 32 << 12
        assert plan.chunk_sizes[index] == scan.chunk_sizes[number]


def test_segments_cover_the_plan() -> None:
    size = SEGMENT_BYTES // 4
    scan = scan_of([(i, CHUNK if i % 3 else 77) for i in range(4000)])
    plan = plan_layer(0, scan, KnownChunks(), CHUNK)
    found = list(segments(plan, scan))
    assert len(found) == -(-plan.new_bytes // SEGMENT_BYTES) > 1
    assert [count for segment in found for count in segment.piece_counts] == list(plan.piece_counts)
    assert [size for segment in found for size in segment.chunk_sizes] == list(plan.chunk_sizes)
    position = 0
    for segment in found:
        assert segment.packed_offset == position
        assert sum(segment.piece_counts) == len(segment.chunk_sizes) == len(segment.chunk_offsets)
        position += sum(segment.chunk_sizes)
    assert size < position


def test_an_empty_layer_has_no_segments() -> None:
    scan = scan_of([])
    plan = plan_layer(0, scan, KnownChunks(), CHUNK)
    assert list(segments(plan, scan)) == []
    assert (plan.chunk_count, plan.uncompressed_size) == (0, 0)


def test_too_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.build.plan.MAX_CHUNKS_PER_BLOB", 3)
    with pytest.raises(FormatError, match="do not fit in one blob"):
        plan_layer(0, scan_of([(i, 1) for i in range(3)]), KnownChunks(), 0)
