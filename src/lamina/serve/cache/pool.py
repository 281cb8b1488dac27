"""Open things by key, of which so many stay open, and those in use in any case."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Closeable(Protocol):
    """What the pool closes."""

    def close(self) -> None:
        """Close it."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Closeable)


class _Entry(Generic[V]):
    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.value: V | None = None
        self.users = 0


class Pool(Generic[K, V]):
    """Opens what is asked for, once for all who ask.  Threads share it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()

    @contextmanager
    def using(self, key: K, opener: Callable[[], V]) -> Iterator[V]:
        """Give what *key* stands for, which *opener* opens unless it is."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            entry.users += 1
        try:
            with entry.opening:
                if entry.value is None:
                    entry.value = opener()
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
                dropped = self._drop()
            for value in dropped:
                value.close()

    def _drop(self) -> list[V]:
        """Take out what is too much or was never opened, oldest first, and return it."""
        idle = [key for key, entry in self._entries.items() if not entry.users]
        excess = len(self._entries) - self._most
        dropped = []
        for key in idle:
            value = self._entries[key].value
            if value is None or excess > 0:
                del self._entries[key]
                excess -= 1
                if value is not None:
                    dropped.append(value)
        return dropped

    def close(self) -> None:
        """Close everything; nobody uses it any more."""
        with self._lock:
            values = [entry.value for entry in self._entries.values()]
            self._entries.clear()
        for value in values:
            if value is not None:
                value.close()
