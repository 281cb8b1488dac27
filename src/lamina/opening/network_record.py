"""What the node knows of the links to its registries, from one process to the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lamina.errors import Error
from lamina.oci.reference import Reference
from lamina.source.network_estimate import UNKNOWN, NetworkEstimate, NetworkEstimator
from lamina.store.names import name_digest
from lamina.store.node import NodeStore
from lamina.store.records import LINK, LinkRecord

LOG: Final = logging.getLogger("lamina")

CHANGE: Final = 0.25
"""By how much a link must have changed to be worth writing down."""


def place_key(reference: Reference) -> str:
    """Return what stands for the registry of a reference: all its repositories have one link."""
    return name_digest(reference.registry or reference.transport)


def known_estimate(store: NodeStore, reference: Reference) -> NetworkEstimate:
    """Return how the link to the place of *reference* was when it was last used."""
    kept = store.records.read(LINK, place_key(reference))
    if kept is None or not (0 <= kept.round_trip_s < 3600 and 0 < kept.bytes_per_s < 1e15):
        return UNKNOWN
    return NetworkEstimate(kept.round_trip_s, kept.bytes_per_s)


def remember_estimate(store: NodeStore, reference: Reference, link: NetworkEstimate) -> None:
    """Keep *link* for the next process, if it is news; failing to is no error."""
    if link.known and _differs(link, known_estimate(store, reference)):
        record = LinkRecord(link.round_trip_s, link.bytes_per_s)
        try:
            store.records.write(LINK, place_key(reference), record)
        except Error as error:
            LOG.debug("the link is not remembered: %s", error)


def _differs(link: NetworkEstimate, other: NetworkEstimate) -> bool:
    pairs = zip(link, other, strict=True)
    return not other.known or any(abs(a - b) > max(CHANGE * b, 0.0005) for a, b in pairs)


@contextmanager
def measured(estimator: NetworkEstimator, size_bytes: int) -> Iterator[None]:
    """Take the time of the block as that of a request of so many bytes."""
    begin = time.monotonic()
    yield
    estimator.add(size_bytes, time.monotonic() - begin)
