from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from lamina.source.spans import plan_spans


class Extent(NamedTuple):
    offset: int
    size: int


def shapes(*pieces: tuple[int, int], bridge: int = 0, span: int = 1000) -> list[tuple[int, int]]:
    found = plan_spans([Extent(*p) for p in pieces], bridge_bytes=bridge, span_bytes=span)
    return [(one.offset, one.size) for one in found]


def test_neighbours_are_one_request() -> None:
    assert shapes((0, 10), (10, 20), (30, 5)) == [(0, 35)]


def test_order_does_not_matter() -> None:
    assert shapes((30, 5), (0, 10), (10, 20)) == [(0, 35)]


def test_a_gap_is_bridged_only_if_it_is_small() -> None:
    assert shapes((0, 10), (14, 10), bridge=4) == [(0, 24)]
    assert shapes((0, 10), (15, 10), bridge=4) == [(0, 10), (15, 10)]


def test_long_runs_are_cut() -> None:
    assert shapes((0, 60), (60, 60), (120, 60), span=120) == [(0, 120), (120, 60)]


def test_a_piece_longer_than_a_span_is_one_request() -> None:
    assert shapes((0, 500), (500, 10), span=100) == [(0, 500), (500, 10)]


def test_nothing_to_fetch() -> None:
    assert plan_spans([]) == []


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=40),
    st.integers(0, 200),
    st.integers(1, 2000),
)
def test_every_piece_lies_in_its_span(
    pieces: list[tuple[int, int]], bridge: int, span: int
) -> None:
    extents = [Extent(*piece) for piece in pieces]
    spans = plan_spans(extents, bridge_bytes=bridge, span_bytes=span)
    assert sorted(piece for one in spans for piece in one.pieces) == sorted(extents)
    for one in spans:
        assert min(piece.offset for piece in one.pieces) == one.offset
        assert max(piece.offset + piece.size for piece in one.pieces) == one.offset + one.size
        assert one.size <= max(span, max(piece.size for piece in one.pieces))
        covered = one.offset
        for piece in one.pieces:
            assert piece.offset <= covered + bridge
            covered = max(covered, piece.offset + piece.size)
