from __future__ import annotations

import random

import pytest

from lamina.source.network_estimate import (
    ASSUMED_BYTES_PER_S,
    UNKNOWN,
    NetworkEstimate,
    NetworkEstimator,
)


def feed(
    estimator: NetworkEstimator, link: NetworkEstimate, sizes: list[int], noise: float = 0.0
) -> None:
    chance = random.Random(1)
    for size in sizes:
        estimator.add(size, link.time_s(size) * (1 + chance.uniform(-noise, noise)))


@pytest.mark.parametrize(
    "link",
    [
        NetworkEstimate(0.05, 3e6),
        NetworkEstimate(0.005, 1e8),
        NetworkEstimate(0.0002, 5e8),
        NetworkEstimate(0.3, 2e6),
    ],
)
def test_both_are_told_apart(link: NetworkEstimate) -> None:
    estimator = NetworkEstimator()
    chance = random.Random(2)
    feed(estimator, link, [chance.randrange(10_000, 1_000_000) for _ in range(100)], noise=0.05)
    found = estimator.estimate
    assert found.bytes_per_s == pytest.approx(link.bytes_per_s, rel=0.2)
    assert found.time_s(300_000) == pytest.approx(link.time_s(300_000), rel=0.1)
    assert found.round_trip_s == pytest.approx(link.round_trip_s, rel=0.3, abs=0.002)


def test_nothing_is_known_at_first() -> None:
    assert NetworkEstimator().estimate == UNKNOWN
    assert not UNKNOWN.known
    assert UNKNOWN.time_s(1000) == 0
    start = NetworkEstimate(0.05, 3e6)
    assert NetworkEstimator(start).estimate == start


def test_a_change_is_followed() -> None:
    estimator = NetworkEstimator()
    sizes = [50_000, 500_000, 200_000, 90_000] * 25
    feed(estimator, NetworkEstimate(0.001, 1e8), sizes)
    feed(estimator, NetworkEstimate(0.08, 1e6), sizes)
    assert estimator.estimate.round_trip_s == pytest.approx(0.08, rel=0.3)


def test_one_stall_does_not_count_for_ever() -> None:
    estimator = NetworkEstimator()
    sizes = [50_000, 500_000, 200_000, 90_000] * 10
    feed(estimator, NetworkEstimate(0.01, 1e7), sizes)
    estimator.add(100_000, 30.0)
    assert estimator.estimate.round_trip_s < 0.03
    feed(estimator, NetworkEstimate(0.01, 1e7), sizes * 3)
    assert estimator.estimate.round_trip_s == pytest.approx(0.01, rel=0.3)


def test_requests_of_one_size_keep_the_bandwidth() -> None:
    estimator = NetworkEstimator(NetworkEstimate(0.05, 1e7))
    feed(estimator, NetworkEstimate(0.02, 1e7), [100_000] * 50)
    assert estimator.estimate.bytes_per_s == pytest.approx(1e7)
    assert estimator.estimate.round_trip_s == pytest.approx(0.02, rel=0.05)


def test_small_requests_tell_the_round_trip_only() -> None:
    estimator = NetworkEstimator()
    feed(estimator, NetworkEstimate(0.004, 2e4), [500, 3000, 900])
    assert estimator.estimate.bytes_per_s == ASSUMED_BYTES_PER_S
    assert estimator.estimate.round_trip_s == pytest.approx(0.08, rel=0.2)
    feed(estimator, NetworkEstimate(0.004, 1e6), [300_000])
    assert estimator.estimate.bytes_per_s < 2e6


def test_large_requests_of_one_size_tell_the_bandwidth_at_least() -> None:
    estimator = NetworkEstimator()
    feed(estimator, NetworkEstimate(0.001, 1e6), [500_000] * 3)
    assert estimator.estimate.bytes_per_s == pytest.approx(1e6, rel=0.01)
