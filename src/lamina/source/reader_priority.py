"""Who may use the link: readers always, the background when no reader waits and at its own rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_LONGEST_WAIT_S: Final = 0.5
"""A waiter looks again this often, so that closing is noticed."""


class TokenBucket:
    """At most ``bytes_per_s`` over time, and bursts of one second's worth.  Thread-safe.

    A request larger than the burst goes into debt instead of waiting for ever.
    """

    def __init__(self, bytes_per_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if bytes_per_s <= 0:
            raise ValueError("a rate must be positive")
        self._rate = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._level = bytes_per_s
        self._filled = clock()

    def another(self) -> TokenBucket:
        """Return a full bucket of the same rate."""
        return TokenBucket(self._rate, clock=self._clock)

    def take(self, size_bytes: int) -> float:
        """Take so many bytes if the bucket is not in debt and return 0; else return the seconds
        until it is not, and take nothing.
        """
        with self._lock:
            now = self._clock()
            self._level = min(self._level + (now - self._filled) * self._rate, self._rate)
            self._filled = now
            if self._level <= -1:
                return -self._level / self._rate
            self._level -= size_bytes
            return 0.0


class ReaderPriority:
    """Counts readers that wait for bytes, and lets the background in between.  Thread-safe."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._waited_s = 0.0
        self._since = 0.0

    @contextmanager
    def foreground(self) -> Iterator[None]:
        """While this is held, nothing new begins in the background."""
        with self._condition:
            if not self._readers:
                self._since = time.monotonic()
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if not self._readers:
                    self._waited_s += time.monotonic() - self._since
                    self._condition.notify_all()

    @property
    def has_readers(self) -> bool:
        """Whether some reader waits for bytes now."""
        return self._readers > 0

    @property
    def waited_s(self) -> float:
        """How long some reader waited, so far; times that two waited at once count once."""
        with self._condition:
            running_s = time.monotonic() - self._since if self._readers else 0.0
            return self._waited_s + running_s

    def wait_idle(
        self, size_bytes: int, bucket: TokenBucket | None, stopped: threading.Event
    ) -> bool:
        """Wait until no reader waits and *bucket* allows so many bytes; False if stopped before.

        Whoever calls this must hold nothing that a reader could wait for.
        """
        while not stopped.is_set():
            with self._condition:
                if self._readers:
                    self._condition.wait(_LONGEST_WAIT_S)
                    continue
            pause_s = bucket.take(size_bytes) if bucket is not None else 0.0
            if pause_s <= 0:
                return True
            stopped.wait(min(pause_s, _LONGEST_WAIT_S))
        return False
