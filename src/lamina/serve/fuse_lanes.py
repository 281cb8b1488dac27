"""Requests of one connection in lanes, so that those of one lane do not take all threads.

Of each lane so many are answered at a time.  Others wait here without a thread, and are answered by
the thread that is done with one before them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lamina.wire import fuse


class Lanes:
    """Threads share it."""

    def __init__(self, lane_of: Callable[[fuse.Request], Hashable | None], most: int) -> None:
        """*lane_of* names the lane of a request, None if it is in none; *most* of a lane are
        answered at a time.
        """
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
