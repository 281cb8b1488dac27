"""One fetch for all who want the same thing at the same time."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from typing import Final, Generic, TypeVar

from lamina.source.retry import DeadlineError

K = TypeVar("K", bound=Hashable)


class Flight(Generic[K]):
    """One thing being fetched.  Who claimed it lands it; others wait for that."""

    __slots__ = ("_landed", "error", "key")

    def __init__(self, key: K) -> None:
        self.key: Final = key
        self.error: Exception | None = None
        # A held lock as a latch: a tenth of the cost of an Event, and most flights have no waiter.
        self._landed = threading.Lock()
        self._landed.acquire()

    def wait(self, timeout_s: float | None = None) -> Exception | None:
        """Wait until it has landed; returns the error it failed with, if it did.

        After *timeout_s* that is a DeadlineError.
        """
        if not self._landed.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0)):
            return DeadlineError("the bytes, which another reader asked for too, did not come")
        self._landed.release()
        return self.error

    def finish(self, error: Exception | None) -> None:
        """Let all waiters go; only :meth:`SingleFlight.land` calls this."""
        self.error = error
        self._landed.release()


class SingleFlight(Generic[K]):
    """The flights of the moment, by key.  A failure reaches all who wait and is then forgotten."""

    def __init__(self) -> None:
        self._flights: dict[K, Flight[K]] = {}
        self._lock = threading.Lock()

    def claim(self, keys: Iterable[K]) -> tuple[list[Flight[K]], list[Flight[K]]]:
        """Return (flights that the caller must now land, flights of others to wait for).

        One call claims all it can at once, and who waits has landed its own before: no two callers
        can wait for each other.
        """
        mine: list[Flight[K]] = []
        others: list[Flight[K]] = []
        with self._lock:
            for key in keys:
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._flights[key] = Flight(key)
                    mine.append(flight)
                else:
                    others.append(flight)
        return mine, others

    def land(self, flight: Flight[K], error: Exception | None = None) -> None:
        """End a flight that the caller claimed.  Landing it again does nothing."""
        with self._lock:
            if self._flights.get(flight.key) is not flight:
                return
            del self._flights[flight.key]
        flight.finish(error)
