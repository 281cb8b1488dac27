from __future__ import annotations

from itertools import pairwise

import pytest

from lamina.source.network_estimate import UNKNOWN, NetworkEstimate
from lamina.source.request_sizing import (
    DEFAULT,
    LARGEST_SPAN,
    MOST_AHEAD,
    MOST_BRIDGED,
    SMALLEST_SPAN,
    background_span_bytes,
    choose_spans,
)
from lamina.source.spans import SPAN_BYTES


def test_an_unknown_link_gets_the_defaults() -> None:
    assert choose_spans(UNKNOWN) == DEFAULT
    assert DEFAULT.ahead_bytes == 0


@pytest.mark.parametrize("bandwidth", [1e6, 1e8, 5e9])
@pytest.mark.parametrize("round_trip", [0.0, 0.0003, 0.0019])
def test_nearby_nothing_more_than_asked(round_trip: float, bandwidth: float) -> None:
    policy = choose_spans(NetworkEstimate(round_trip, bandwidth))
    assert policy.bridge_bytes == 0
    assert policy.ahead_bytes == 0


def test_far_away_what_is_cheaper_than_a_round_trip() -> None:
    policy = choose_spans(NetworkEstimate(0.05, 3e6))
    assert policy.bridge_bytes == 150_000
    assert policy.ahead_bytes == 75_000
    assert policy.span_bytes == SPAN_BYTES


def test_the_bounds_hold_on_long_fat_links() -> None:
    policy = choose_spans(NetworkEstimate(0.3, 1e9))
    assert policy == (MOST_BRIDGED, LARGEST_SPAN, MOST_AHEAD)


@pytest.mark.parametrize("round_trip", [0.003, 0.02, 0.2])
def test_more_bandwidth_never_means_less(round_trip: float) -> None:
    found = [choose_spans(NetworkEstimate(round_trip, 10.0**power)) for power in range(4, 10)]
    for less, more in pairwise(found):
        assert all(a <= b for a, b in zip(less, more, strict=True))


def test_the_background_leaves_the_link_to_readers() -> None:
    assert background_span_bytes(UNKNOWN) == SMALLEST_SPAN
    assert background_span_bytes(NetworkEstimate(0.05, 3e6)) == 300_000
    assert background_span_bytes(NetworkEstimate(0.05, 1e9)) == SPAN_BYTES
    assert background_span_bytes(NetworkEstimate(0.05, 1e4)) == SMALLEST_SPAN
