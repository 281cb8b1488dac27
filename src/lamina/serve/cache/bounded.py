"""A mapping that forgets what was not asked for longest, by weight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """Values by key, of a total weight that has a limit.  Threads share it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._weight = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return the value, or None."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: K, value: V, weight: int = 1) -> None:
        """Keep a value, unless it is too heavy for itself."""
        with self._lock:
            _, old = self._items.pop(key, (None, 0))
            self._weight -= old
            if weight > self._most:
                return
            self._items[key] = value, weight
            self._weight += weight
            while self._weight > self._most:
                _, (_, dropped) = self._items.popitem(last=False)
                self._weight -= dropped
