"""Memory that many share: each gets what it wants while there is some, and a little after that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Allowance:
    """Bytes that are lent.  Threads share it.

    Nobody waits for others, who may be slow for as long as they like: once all is lent, each has
    *least_bytes*.  So in use are at most *total_bytes*, and *least_bytes* for each user.
    """

    def __init__(self, total_bytes: int, least_bytes: int) -> None:
        self._free = total_bytes
        self._least = least_bytes
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, wanted_bytes: int) -> Iterator[int]:
        """Give as much as is wanted, or less; how much it is."""
        with self._lock:
            granted = min(wanted_bytes, max(self._free, self._least))
            self._free -= granted
        try:
            yield granted
        finally:
            with self._lock:
                self._free += granted
