"""Which requests fetch a set of pieces.

Neighbours go into one request.  A gap of pieces that are not wanted is fetched along only if its
bytes cost less than the request they save: with a round trip of 5-50 ms and 3-100 MB/s that is
tens of KiB.  Long runs are cut, so that several connections share the work and nobody waits for
the whole of a run who wants a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

BRIDGE_BYTES: Final = 16 * 1024
"""Largest gap that is fetched along."""

SPAN_BYTES: Final = 1 << 20
"""A span grows no longer than this, unless a single piece is longer."""


class Stored(Protocol):
    """What planning needs to know of a piece: where it is stored."""

    @property
    def offset(self) -> int:
        """First byte in the blob."""

    @property
    def size(self) -> int:
        """Stored bytes."""


P = TypeVar("P", bound=Stored)


class Span(NamedTuple, Generic[P]):
    """One request: ``size`` bytes of the blob at ``offset``, which hold ``pieces``."""

    offset: int
    size: int
    pieces: list[P]


def plan_spans(
    pieces: Iterable[P], *, bridge_bytes: int = BRIDGE_BYTES, span_bytes: int = SPAN_BYTES
) -> list[Span[P]]:
    """Group *pieces* into requests, in the order of the blob."""
    spans: list[Span[P]] = []
    start = end = 0
    current: list[P] = []
    for piece in sorted(pieces, key=attrgetter("offset")):
        piece_end = piece.offset + piece.size
        near = piece.offset <= end + bridge_bytes and piece_end <= start + span_bytes
        if current and not near:
            spans.append(Span(start, end - start, current))
            current = []
        if not current:
            start = end = piece.offset
        current.append(piece)
        end = max(end, piece_end)
    if current:
        spans.append(Span(start, end - start, current))
    return spans
