"""What a reader has done so far, in memory that its parent maps too: kill -9 loses none of it.

Some numbers, two for each way to read, and one for each errno, all u64.  Times are nanoseconds of
the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import Counter

NUMBERS = 32
ERRNOS = 256
BEGUN, READS, BYTES, WRONG, LONGEST = range(5)
BY_WAY = 8
IMPOSSIBLE = 16
MOST_WAYS = 8


class Tally:
    """The numbers of one reader, in a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Map the file, made if it is not there."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, 8 * (NUMBERS + ERRNOS))
            self._map = mmap.mmap(fd, 8 * (NUMBERS + ERRNOS))
        finally:
            os.close(fd)
        self._numbers = memoryview(self._map).cast("Q")

    def begin(self) -> None:
        """A read begins."""
        self._numbers[BEGUN] = time.monotonic_ns()

    def count(self, which: int) -> None:
        """Add one to a number."""
        self._numbers[which] += 1

    def go_on(self) -> None:
        """The next call of a read that takes several begins, and the last one has ended."""
        numbers, now = self._numbers, time.monotonic_ns()
        numbers[LONGEST] = max(numbers[LONGEST], now - numbers[BEGUN])
        numbers[BEGUN] = now

    def end(self, size_bytes: int = 0, code: int = 0, *, wrong: bool = False) -> None:
        """It came to an end: with so many right bytes, with an errno, or with wrong bytes."""
        numbers = self._numbers
        took = time.monotonic_ns() - numbers[BEGUN]
        numbers[LONGEST] = max(numbers[LONGEST], took)
        numbers[BEGUN] = 0
        numbers[READS] += 1
        numbers[BYTES] += size_bytes
        numbers[WRONG] += wrong
        if code:
            numbers[NUMBERS + min(code, ERRNOS - 1)] += 1

    def abandon(self) -> None:
        """What had begun was no read after all."""
        self._numbers[BEGUN] = 0

    def waiting_s(self) -> float:
        """How long the read that is going on has taken so far, 0 without one."""
        begun = self._numbers[BEGUN]
        return (time.monotonic_ns() - begun) / 1e9 if begun else 0.0

    def number(self, which: int) -> int:
        """One of the numbers."""
        return self._numbers[which]

    def errors(self) -> Counter[int]:
        """How many reads ended with which errno."""
        return Counter({n: count for n in range(ERRNOS) if (count := self._numbers[NUMBERS + n])})

    def close(self) -> None:
        """Unmap it."""
        self._numbers.release()
        self._map.close()
