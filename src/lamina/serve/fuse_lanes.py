"""Requests of one connection in lanes, so that those of one lane do not take all threads.

Of each lane so many are answered at a time.  Others wait here without a thread, and are answered by
the thread that is done with one before them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from lamina.wire import fuse


FEWEST_THREADS: Final = 256
MOST_THREADS: Final = 1024
"""How many requests of a connection with lanes can wait for the network at a time."""

SPARE_THREADS: Final = 16
"""For what is in no lane: the rest have all lanes together at most."""


class Share(NamedTuple):
    """How many threads a connection has, and one lane of it."""

    threads: int
    of_lane: int


def share(lanes: int, wanted: int) -> Share:
    """Return what each of *lanes* can have, *wanted* if possible, so that all of them together
    leave something.
    """
    threads = min(max(FEWEST_THREADS, lanes * wanted + SPARE_THREADS), MOST_THREADS)
    return Share(threads, max(1, min(wanted, (threads - SPARE_THREADS) // max(lanes, 1))))


class Lanes:
    """Threads share it."""

    def __init__(
        self,
        lane_of: Callable[[fuse.Request], Hashable | None],
        most: int,
        threads: int = FEWEST_THREADS,
    ) -> None:
        """*lane_of* names the lane of a request, None if it is in none; *most* of a lane are
        answered at a time, by *threads* for all of them.
        """
        self.threads: Final = threads
        self._lane_of: Final = lane_of
        self._most = most
        self._lock = threading.Lock()
        self._answered: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[fuse.Request]] = {}

    def enter(self, request: fuse.Request) -> bool:
        """Return whether a request can be answered now; else it is kept, and :meth:`leave` returns
        it to another thread.
        """
        lane = self._lane_of(request)
        if lane is None:
            return True
        with self._lock:
            count = self._answered.get(lane, 0)
            if count >= self._most:
                self._waiting.setdefault(lane, deque()).append(request)
                return False
            self._answered[lane] = count + 1
            return True

    def leave(self, request: fuse.Request) -> fuse.Request | None:
        """Note that a request is answered; return the one that is to be answered in its place."""
        lane = self._lane_of(request)
        if lane is None:
            return None
        with self._lock:
            waiting = self._waiting.get(lane)
            if waiting:
                following = waiting.popleft()
                if not waiting:
                    del self._waiting[lane]
                return following
            count = self._answered[lane] - 1
            if count:
                self._answered[lane] = count
            else:
                del self._answered[lane]
            return None
