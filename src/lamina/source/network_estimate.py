"""What a link costs: round trip and bandwidth, measured from the requests that were made anyway."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

DECAY: Final = 0.94
"""Weight that a measurement keeps with each later one: the last thirty or so count."""

SMALLEST_SLOPE_S: Final = 1e-11
"""Seconds a byte: no link is faster than 100 GB/s."""

ASSUMED_BYTES_PER_S: Final = 12.5e6
"""Bandwidth that is assumed while all requests were too small to tell: 100 Mbit/s."""

TELLING_BYTES: Final = 64 << 10
"""Requests that differ by less, or are smaller, tell the round trip but not the bandwidth."""

OUTLIER: Final = 5.0
"""A request that took so many times what was to be expected counts as that many times."""


class NetworkEstimate(NamedTuple):
    """``round_trip_s`` is what a request costs however small; ``bytes_per_s`` what one connection
    then carries.  Both are 0 while nothing is known.
    """

    round_trip_s: float
    bytes_per_s: float

    @property
    def known(self) -> bool:
        """Whether there were measurements."""
        return self.bytes_per_s > 0

    def time_s(self, size_bytes: int, requests: int = 1) -> float:
        """Return how long so many bytes in so many requests take, one after the other."""
        if not self.known:
            return 0.0
        return self.round_trip_s * requests + size_bytes / self.bytes_per_s


UNKNOWN: Final = NetworkEstimate(0.0, 0.0)


class NetworkEstimator:
    """Fits ``seconds = round trip + bytes / bandwidth`` to the latest requests.  Thread-safe.

    Weighted least squares with exponential forgetting.  While all requests have about one size, or
    are small, the two cannot be told apart; then the bandwidth that was known before stays.
    """

    def __init__(self, start: NetworkEstimate = UNKNOWN) -> None:
        self._lock = threading.Lock()
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._slope = 1 / (start.bytes_per_s if start.known else ASSUMED_BYTES_PER_S)
        self._measured = start.known
        self._start = start

    def add(self, size_bytes: int, seconds: float) -> None:
        """Take a request that succeeded into account."""
        with self._lock:
            if self._weight >= 4:
                expected = self._intercept() + self._slope * size_bytes
                seconds = min(seconds, max(OUTLIER * expected, 0.001))
            self._weight = self._weight * DECAY + 1
            self._x = self._x * DECAY + size_bytes
            self._y = self._y * DECAY + seconds
            self._xx = self._xx * DECAY + size_bytes * size_bytes
            self._xy = self._xy * DECAY + size_bytes * seconds
            self._fit()

    def _fit(self) -> None:
        mean = self._x / self._weight
        variance = self._xx / self._weight - mean * mean
        if variance > max(0.1 * mean, TELLING_BYTES / 2) ** 2:
            covariance = self._xy / self._weight - mean * self._y / self._weight
            self._slope = max(covariance / variance, SMALLEST_SLOPE_S)
            self._measured = True
        elif not self._measured and mean >= TELLING_BYTES:
            self._slope = max(self._y / self._x, SMALLEST_SLOPE_S)

    def _intercept(self) -> float:
        return max((self._y - self._slope * self._x) / self._weight, 0.0)

    @property
    def estimate(self) -> NetworkEstimate:
        """What is known now."""
        with self._lock:
            if self._weight == 0:
                return self._start
            return NetworkEstimate(self._intercept(), 1 / self._slope)
