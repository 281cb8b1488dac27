"""Deduplication, storage order and packs."""

from __future__ import annotations

import hashlib
import itertools
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.build.known_chunks import KnownChunks
from lamina.build.plan import Fate, LayerPlan, LayerPlanner, encode_references, plan_layer
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
    encoded = encode_references(plans[1].references, dict(enumerate(plans)), {0: 4, 1: 0})
    assert encoded[:8] == bytes([0, 0, 1, 0, 0, 0, 0, 0])
    assert encoded[8:16] == bytes([1, 0, 5, 0, 2, 0, 0, 0])
    assert encoded[16:] == encoded[:8]


def test_large_chunk_numbers_are_split_over_the_index() -> None:
    plan = plan_layer(0, scan_of([(i, 1) for i in range(70_000)]), KnownChunks(), 0)
    last = encode_references(plan.references[-1:], {0: plan}, {0: 0})
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
    digests = [bytes(scan.digests[i : i + 32]) for i in range(0, len(scan.digests), 32)]
    own = bytes(scan.digests_of(plan.chunks))
    assert len(own) == 32 * len(set(digests))
    assert {own[i : i + 32] for i in range(0, len(own), 32)} == set(digests)
    for members in pieces(plan):
        size = sum(scan.chunk_sizes[number] for number in members)
        assert len(members) == 1 or size <= pack_size
    # Every reference leads to a chunk of the same digest and size.
    encoded = encode_references(plan.references, {0: plan}, {0: 0})
    for number, digest in enumerate(digests):
        word = int.from_bytes(encoded[8 * number : 8 * number + 8], "little")
        index = word & 0xFFFF | (word >> 24 & 0xFF) << 16
        assert own[32 * index : 32 * index + 32] == digest
        assert plan.addresses[index] == word >> 32 << 12
        assert plan.chunk_sizes[index] == scan.chunk_sizes[number]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, CHUNK)), max_size=60),
    st.sampled_from((0, 4096, CHUNK)),
)
def test_pieces_are_known_while_chunks_come(chunks: list[tuple[int, int]], pack_size: int) -> None:
    """What was gathered when a pack is full are the pieces, in the order of the plan."""
    scan = scan_of(chunks)
    found: list[list[int]] = []
    pack: list[int] = []

    def close() -> None:
        found.append(pack[:])
        pack.clear()

    planner = LayerPlanner(0, KnownChunks(), CHUNK, pack_size, close)
    for number, size in enumerate(scan.chunk_sizes):
        fate = planner.add(scan.digests[32 * number : 32 * number + 32], size)
        if fate is Fate.ALONE:
            found.append([number])
        elif fate is Fate.PACKED:
            pack.append(number)
    plan = planner.finish()
    assert found == pieces(plan)
    assert not pack


def test_an_empty_layer() -> None:
    plan = plan_layer(0, scan_of([]), KnownChunks(), CHUNK)
    assert (plan.chunk_count, plan.uncompressed_size) == (0, 0)


def test_too_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.build.plan.MAX_CHUNKS_PER_BLOB", 3)
    with pytest.raises(FormatError, match="do not fit in one blob"):
        plan_layer(0, scan_of([(i, 1) for i in range(3)]), KnownChunks(), 0)
