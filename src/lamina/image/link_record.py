"""What the node knows of the links to its registries, from one process to the next."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from lamina.errors import Error
from lamina.fetch.link import UNKNOWN, Link, LinkEstimator
from lamina.registry.reference import Reference
from lamina.store.node import NodeStore, name_digest

LOG: Final = logging.getLogger("lamina")

KIND: Final = "link"
CHANGE: Final = 0.25
"""By how much a link must have changed to be worth writing down."""


def _key(reference: Reference) -> str:
    return name_digest(reference.registry or reference.transport)


def known_link(store: NodeStore, reference: Reference) -> Link:
    """Return how the link to the place of *reference* was when it was last used."""
    data = store.record(KIND, _key(reference))
    if data is not None:
        with suppress(ValueError, KeyError, TypeError):
            document = json.loads(data)
            link = Link(float(document["round_trip_s"]), float(document["bytes_per_s"]))
            if 0 <= link.round_trip_s < 3600 and 0 < link.bytes_per_s < 1e15:
                return link
    return UNKNOWN


def remember_link(store: NodeStore, reference: Reference, link: Link) -> None:
    """Keep *link* for the next process, if it is news; failing to is no error."""
    if link.known and _differs(link, known_link(store, reference)):
        document = {"round_trip_s": link.round_trip_s, "bytes_per_s": link.bytes_per_s}
        try:
            store.put_record(KIND, _key(reference), json.dumps(document).encode())
        except Error as error:
            LOG.debug("the link is not remembered: %s", error)


def _differs(link: Link, other: Link) -> bool:
    pairs = zip(link, other, strict=True)
    return not other.known or any(abs(a - b) > max(CHANGE * b, 0.0005) for a, b in pairs)


@contextmanager
def measured(estimator: LinkEstimator, size_bytes: int) -> Iterator[None]:
    """Take the time of the block as that of a request of so many bytes."""
    begin = time.monotonic()
    yield
    estimator.add(size_bytes, time.monotonic() - begin)
