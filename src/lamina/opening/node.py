"""What the images that a process has open share beside the store: the links of their node."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from lamina.opening.network_record import known_estimate, place_key
from lamina.source.network_estimate import NetworkEstimator
from lamina.source.reader_priority import ReaderPriority

if TYPE_CHECKING:
    from lamina.oci.reference import Reference
    from lamina.store.node import NodeStore


class Node:
    """The links of a node to its registries.  Threads share it.

    Whoever opens several images opens them with one: then nothing is fetched in the background for
    one of them while a reader of another waits, and what a registry costs is known to all.
    """

    def __init__(self) -> None:
        self.priority = ReaderPriority()
        """Who may use the links."""
        self._lock = threading.Lock()
        self._estimators: dict[str, NetworkEstimator] = {}

    def estimator(self, store: NodeStore, where: Reference) -> NetworkEstimator:
        """Return who is told how fast the place of an image is, who begins with what *store* knows
        of it.
        """
        key = place_key(where)
        with self._lock:
            found = self._estimators.get(key)
            if found is None:
                found = self._estimators[key] = NetworkEstimator(known_estimate(store, where))
            return found


@functools.cache
def process_node() -> Node:
    """Return the node of a process that names no other: all its images share its links."""
    return Node()
