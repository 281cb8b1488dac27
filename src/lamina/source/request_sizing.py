"""How much more than what was asked for is worth fetching: a pure policy over a measured link.

A request costs a round trip, a byte its share of the bandwidth.  What can be carried in a round
trip is the break-even: a gap shorter than it is cheaper to carry than to skip, and of neighbours
that are wanted half of the time half as much pays.  Where round trips cost next to nothing, nothing
is fetched that was not asked for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lamina.source.network_estimate import NetworkEstimate
from lamina.source.spans import BRIDGE_BYTES, SPAN_BYTES

NEXT_TO_NOTHING_S: Final = 0.002
"""A shorter round trip is that of the same machine or rack; it is not worth a byte."""

NEIGHBOUR_USE: Final = 0.5
"""How much of what lies behind a read is itself read soon.  Files of one folder are stored
together, so it is far from nothing; unmeasured images differ, so it is not taken for more.
"""

MOST_BRIDGED: Final = 256 * 1024
MOST_AHEAD: Final = 512 * 1024
SMALLEST_SPAN: Final = 128 * 1024
LARGEST_SPAN: Final = 4 << 20
SPAN_ROUND_TRIPS: Final = 4
"""A span that takes this many round trips to carry loses a fifth of the time to waiting."""

BACKGROUND_S: Final = 0.1
"""How long a request in the background may keep the link from who reads."""


class SpanPolicy(NamedTuple):
    """Bounds for :func:`lamina.source.spans.plan_spans`, and how far a read reaches ahead."""

    bridge_bytes: int
    span_bytes: int
    ahead_bytes: int


DEFAULT: Final = SpanPolicy(BRIDGE_BYTES, SPAN_BYTES, 0)
"""Until the link is known."""


def choose_spans(link: NetworkEstimate) -> SpanPolicy:
    """Return the bounds for what somebody waits for."""
    if not link.known:
        return DEFAULT
    if link.round_trip_s < NEXT_TO_NOTHING_S:
        return SpanPolicy(0, SPAN_BYTES, 0)
    break_even = link.round_trip_s * link.bytes_per_s
    span = min(max(int(SPAN_ROUND_TRIPS * break_even), SPAN_BYTES), LARGEST_SPAN)
    return SpanPolicy(
        min(int(break_even), MOST_BRIDGED),
        span,
        min(int(NEIGHBOUR_USE * break_even), MOST_AHEAD),
    )


def background_span_bytes(link: NetworkEstimate) -> int:
    """Return how long a span in the background may be, so that readers need not wait for it."""
    if not link.known:
        return SMALLEST_SPAN
    return min(max(int(BACKGROUND_S * link.bytes_per_s), SMALLEST_SPAN), SPAN_BYTES)
