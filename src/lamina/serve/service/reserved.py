"""Numbers of descriptors that must not be given out again.

A fanotify event is known to the kernel by the number that its descriptor had in the process that
read it, and by nothing else.  While an event of a dead worker waits for its answer, the kernel must
not give its number to a new event: the answer to the one would let the other's reader go on, who
would read a hole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable


class ReservedNumbers:
    """Made before the process opens anything; a number that is in use already is kept in use."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._lock = threading.Lock()
        self._reserved: set[int] = set()
        self._placed: set[int] = set()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            for number in numbers:
                self._reserved.add(number)
                if number != null and not _in_use(number):
                    os.dup2(null, number, inheritable=False)
                    self._placed.add(number)
        finally:
            if null in self._reserved:
                self._placed.add(null)
            else:
                os.close(null)

    def close(self, fd: int) -> None:
        """Close a descriptor, whose number is given out again only if it is not reserved."""
        with self._lock:
            if fd not in self._reserved:
                os.close(fd)
            elif fd not in self._placed:
                null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                os.dup2(null, fd, inheritable=False)
                os.close(null)
                self._placed.add(fd)


def _in_use(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
