"""Whether a container had better start at once or when its image is there: a prediction.

The time that a link takes for so many bytes in so many requests is known from the requests that
were made so far (:mod:`lamina.source.network_estimate`).  What a start reads is the image's own
prefetch list; without one a share of it is assumed.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from lamina.content.lazy_image import LazyImage
from lamina.content.residency import extents_of, prefetch_list
from lamina.source.network_estimate import NetworkEstimate
from lamina.source.parallel import CONNECTIONS
from lamina.source.spans import SPAN_BYTES

Mode = Literal["lazy", "full"]

START_SHARE: Final = 0.08
"""Of an image, as stored, that the start of its program reads: 8 % of a node image that prints its
version, 3-20 % of others.
"""

START_REQUESTS_AT_ONCE: Final = 1.5
"""A program waits for most of its reads one after the other."""

WORTH_S: Final = 0.05
"""A difference that nobody notices; then lazy, which also moves less."""


class StartEstimate(NamedTuple):
    """What has to be fetched, and how long somebody waits for it."""

    seconds: float
    fetched_bytes: int
    requests: int


class StartPlan(NamedTuple):
    """A decision with its reasons; ``link`` is unknown if nothing was fetched yet."""

    mode: Mode
    lazy: StartEstimate
    full: StartEstimate
    link: NetworkEstimate

    @property
    def chosen(self) -> StartEstimate:
        """The estimate of what was decided."""
        return self.lazy if self.mode == "lazy" else self.full


def plan_start(image: LazyImage, link: NetworkEstimate, mode: Mode | None = None) -> StartPlan:
    """Predict both ways over *link* and take the faster, or *mode* if it is given."""
    stored = missing = missing_pieces = 0
    for entry, blob in zip(image.bootstrap.blobs, image.blobs, strict=True):
        share = 1 - blob.cache.ready_count / max(blob.cache.chunk_count, 1)
        stored += entry.compressed_size
        missing += int(entry.compressed_size * share)
        missing_pieces += int(blob.table.piece_count * share)
    wanted = _start_bytes(image, stored, missing)
    pieces = round(missing_pieces * wanted / missing) if missing else 0
    return choose(wanted, pieces, missing, link, mode)


def choose(
    start_bytes: int,
    start_pieces: int,
    missing_bytes: int,
    link: NetworkEstimate,
    mode: Mode | None = None,
) -> StartPlan:
    """Decide from what a start reads, in so many pieces, and what is missing of the image."""
    lazy = StartEstimate(
        link.time_s(start_bytes, 0) + link.round_trip_s * start_pieces / START_REQUESTS_AT_ONCE,
        start_bytes,
        start_pieces,
    )
    spans = -(-missing_bytes // SPAN_BYTES)
    full = StartEstimate(
        link.time_s(missing_bytes, 0) + link.round_trip_s * -(-spans // CONNECTIONS),
        missing_bytes,
        spans,
    )
    faster: Mode = "full" if full.seconds + WORTH_S < lazy.seconds else "lazy"
    return StartPlan(mode or faster, lazy, full, link)


def _start_bytes(image: LazyImage, stored: int, missing: int) -> int:
    early = extents_of(image, prefetch_list(image))
    if not early:
        return min(int(stored * START_SHARE), missing)
    plain = 0
    for extent in early:
        blob = image.blobs[extent.blob_index]
        for chunk in blob.table.chunks_in(extent.offset, extent.size_bytes):
            if not blob.cache.is_ready(chunk):
                plain += blob.table.chunk_extent(chunk)[1]
    whole = sum(blob.size_bytes for blob in image.blobs)
    return min(plain * stored // max(whole, 1), missing)
