"""One log line for a failure, however often readers come back for what cannot be had."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Final

QUIET_S: Final = 60.0
"""How long the same failure of the same thing is not told again."""

MOST_KEYS: Final = 1024


class FailureLog:
    """Remembers what was told lately.  Threads share it; its memory is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[Hashable, tuple[float, int]] = {}

    def untold(self, key: Hashable) -> str | None:
        """Return None if the failure *key* was told lately; else the end of its line, which says
        how often it was not told since it last was, and take it for told now.
        """
        now = self._clock()
        with self._lock:
            when, silent = self._told.pop(key, (-QUIET_S, 0))
            if now - when < QUIET_S:
                self._told[key] = when, silent + 1
                return None
            if len(self._told) >= MOST_KEYS:
                # The first key is the one that was not met for longest.
                del self._told[next(iter(self._told))]
            self._told[key] = now, 0
            return f" ({silent} more times meanwhile)" if silent else ""
