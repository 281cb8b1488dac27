"""Numbers that forked processes share."""

from __future__ import annotations

import mmap

COUNTER_BYTES = 8


class SharedCounters:
    """Numbers in memory that forked processes share; each has one writer."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, COUNTER_BYTES * max(count, 1))
        self._view: memoryview[int] = memoryview(self._memory).cast("Q")

    def add(self, counter: int, amount: int) -> None:
        """Add to a counter."""
        self._view[counter] += amount

    def total(self) -> int:
        """Return the sum of all counters."""
        return sum(self._view)

    def close(self) -> None:
        """Give the memory back."""
        self._view.release()
        self._memory.close()
