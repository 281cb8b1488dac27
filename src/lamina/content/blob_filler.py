"""Filling a blob by pieces: what this node does not have is fetched in spans from the sources."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from lamina.blob.decode import decode_piece
from lamina.blob.piece import Piece
from lamina.content.chunk_keeper import BlobParts, ChunkKeeper, Chunks
from lamina.content.failure_log import FailureLog
from lamina.content.statistics import Statistics
from lamina.errors import Error, IntegrityError
from lamina.source.blob_source import BlobSource
from lamina.source.fetcher import Fetcher
from lamina.source.parallel import Parallel
from lamina.source.range_cache import RangeCache
from lamina.source.request_sizing import choose_spans
from lamina.source.single_flight import Flight, SingleFlight
from lamina.source.spans import Span, plan_spans

Wanted = dict[int, tuple[Piece, list[int]]]
"""Pieces by their first chunk, with the chunks of them that are wanted."""


class Filler(Protocol):
    """How a blob gets the chunks that somebody waits for.  Threads share it."""

    def fill(self, wanted: Wanted, deadline: float) -> None:
        """Return when the chunks have been ready, or somebody else who had begun on them gave up.

        *deadline* is on the monotonic clock.  Raises what
        :meth:`lamina.content.lazy_blob.LazyBlob.ensure` does.
        """


LOG: Final = logging.getLogger("lamina")


@dataclass(slots=True)
class _Order:
    """One call of :meth:`BlobFiller.fill`: pieces by their first chunk, and what of them is
    wanted.
    """

    deadline: float
    wanted: Wanted
    flights: dict[int, Flight[int]] = field(default_factory=dict)
    failures: list[Error] = field(default_factory=list)


class BlobFiller:
    """Fills one blob.  Threads share it, and each piece is fetched once however many want it."""

    def __init__(
        self, parts: BlobParts, keeper: ChunkKeeper, fetcher: Fetcher, parallel: Parallel
    ) -> None:
        """Everything stays the caller's; *keeper* is that of *parts*."""
        self._parts = parts
        self._keeper = keeper
        self._fetcher = fetcher
        self._parallel = parallel
        self._flights: SingleFlight[int] = SingleFlight()
        self._recent = RangeCache() if parts.table.cuts_contexts else None
        self._failures = FailureLog()

    def fill(self, wanted: Wanted, deadline: float) -> None:
        """Get pieces, given by their first chunk with the chunks of them that are wanted, or wait
        for who does.

        When it returns, they have been ready, or somebody who claimed them gave up.
        """
        mine, others = self._flights.claim(wanted)
        order = _Order(deadline, wanted, {flight.key: flight for flight in mine})
        try:
            pieces = [piece for piece in self._claimed(order) if not self._from_here(piece, order)]
            if pieces and not order.failures:
                self._parallel.run(lambda job: job(), self._jobs(pieces, order))
        except Error as error:
            order.failures.append(error)
        finally:
            # What lands without an error and is not ready was given up: who waited tries itself.
            for flight in list(order.flights.values()):
                self._flights.land(flight)
        if order.failures:
            raise order.failures[0]
        for flight in others:
            found = flight.wait(deadline - time.monotonic())
            if found is not None:
                raise found

    def _claimed(self, order: _Order) -> Iterator[Piece]:
        # Some may have become ready between looking and claiming.
        for first in list(order.flights):
            piece, chunks = order.wanted[first]
            if not all(map(self._parts.cache.is_ready, chunks)):
                yield piece

    def _jobs(self, pieces: list[Piece], order: _Order) -> Iterator[Callable[[], None]]:
        """Yield all that has to be fetched; what decoding needs comes at the same time."""
        for span in self._spans(pieces, order):
            yield partial(self._fetch_span, order, span)
            yield from self._parts.table.preparations(span.pieces)

    def _spans(self, pieces: list[Piece], order: _Order) -> Sequence[Span[Piece]]:
        policy = choose_spans(self._fetcher.estimate)
        spans = plan_spans(pieces, bridge_bytes=policy.bridge_bytes, span_bytes=policy.span_bytes)
        if not policy.ahead_bytes:
            return spans
        return [self._reach_ahead(span, policy.ahead_bytes, order) for span in spans]

    def _reach_ahead(self, span: Span[Piece], budget: int, order: _Order) -> Span[Piece]:
        """Add the pieces behind a span that nobody has or fetches yet."""
        table, cache = self._parts.table, self._parts.cache
        pieces, end = list(span.pieces), span.offset + span.size
        limit = end + budget
        chunk = pieces[-1].first + pieces[-1].count
        while chunk < table.chunk_count and not cache.is_ready(chunk):
            piece = table.piece_holding(chunk)
            if piece.offset < span.offset or piece.offset + piece.size > limit:
                break
            claimed, _ = self._flights.claim([piece.first])
            if not claimed:
                break
            order.flights[piece.first] = claimed[0]
            pieces.append(piece)
            end = max(end, piece.offset + piece.size)
            chunk = piece.first + piece.count
        self._keeper.count(Statistics(ahead_bytes=end - span.offset - span.size))
        return Span(span.offset, end - span.offset, pieces)

    def _from_here(self, piece: Piece, order: _Order) -> bool:
        """Get what is wanted of a piece without a source; False if some of it is still missing."""
        cache = self._parts.cache
        missing = [chunk for chunk in order.wanted[piece.first][1] if not cache.is_ready(chunk)]
        left = [chunk for chunk in missing if not self._keeper.get_local(chunk)]
        return not left

    def _fetch_span(self, order: _Order, span: Span[Piece]) -> None:
        if order.failures:
            return
        try:
            data, source = self._stored(span, order.deadline)
        except Error as error:
            self._log(span.pieces[0], error, self._fetcher)
            order.failures.append(error)
            for piece in span.pieces:
                self._flights.land(order.flights[piece.first], error)
            return
        ahead: list[tuple[Piece, memoryview, Flight[int]]] = []
        for piece in span.pieces:
            start = piece.offset - span.offset
            stored = data[start : start + piece.size]
            if piece.first not in order.wanted:
                ahead.append((piece, stored, order.flights.pop(piece.first)))
                continue
            try:
                self._keep(piece, stored, source, order.deadline)
            except Error as error:
                self._log(piece, error, source)
                order.failures.append(error)
                self._flights.land(order.flights[piece.first], error)
            else:
                self._flights.land(order.flights[piece.first])
        if ahead:
            self._parallel.later(partial(self._keep_ahead, ahead, source, order.deadline))

    def _keep_ahead(
        self,
        ahead: Sequence[tuple[Piece, memoryview, Flight[int]]],
        source: BlobSource,
        deadline: float,
    ) -> None:
        """Keep what nobody has asked for; of one that is damaged will hear who does."""
        try:
            for piece, stored, flight in ahead:
                with suppress(Error):
                    self._keep(piece, stored, source, deadline)
                self._flights.land(flight)
        finally:
            for *_, flight in ahead:
                self._flights.land(flight)

    def _stored(self, span: Span[Piece], deadline: float) -> tuple[memoryview, BlobSource]:
        """Return the stored bytes of a span, and who sent them."""
        where = self._parts.table.blob_id, span.offset, span.size
        fetcher, fetched_bytes = self._fetcher, span.size
        if self._recent is None:
            data, source = fetcher.fetch(*where, deadline=deadline)
        else:
            data, source, fetched_bytes = self._recent.fetch(fetcher, *where, deadline)
        if fetched_bytes:
            self._keeper.count(Statistics(requests=1, fetched_bytes=fetched_bytes))
        return data, source

    def _keep(self, piece: Piece, stored: memoryview, source: BlobSource, deadline: float) -> None:
        """Verify a piece, write it and mark it; a damaged one is asked for elsewhere."""
        self._keeper.put(piece, self._decode(piece, stored, source, deadline))

    def _decode(
        self, piece: Piece, stored: memoryview, source: BlobSource, deadline: float
    ) -> Chunks:
        parts = self._parts
        blob_id = parts.table.blob_id
        try:
            return decode_piece(parts.table, piece, stored, parts.digests, blob_id)
        except IntegrityError as error:
            if self._recent is not None:
                self._recent.forget()
            parts.table.forget_prepared()
            where = piece.offset, piece.size
            others = self._fetcher.refetch_elsewhere(
                blob_id, *where, than=source, deadline=deadline
            )
            wrong = {id(source)}
            for data, other in others:
                self._keeper.count(Statistics(requests=1, fetched_bytes=piece.size))
                try:
                    found = decode_piece(parts.table, piece, data, parts.digests, blob_id)
                except IntegrityError:
                    wrong.add(id(other))
                    continue
                LOG.warning(
                    "%s sent damaged data, %s the right: %s",
                    source.name,
                    other.name,
                    error,
                )
                return found
            if parts.doubt is not None and id(self._fetcher.measured[-1]) in wrong:
                parts.doubt()
            raise

    def _log(self, piece: Piece, error: Error, source: BlobSource) -> None:
        more = self._failures.untold((piece.first, type(error)))
        if more is None:
            return
        LOG.error(
            "blob %s, chunks %d to %d, %d bytes at offset %d from %s: %s%s",
            self._parts.table.blob_id,
            piece.first,
            piece.first + piece.count - 1,
            piece.size,
            piece.offset,
            source.name,
            error,
            more,
        )
