"""Filling a blob's cache file: from itself, from neighbours on this node, from the sources.

In this order: a chunk that is in the file from before a power cut is verified again; one that
another blob of the node has is copied, or shared where the file system can; the rest is fetched.
Whatever the way, a chunk is verified before it is marked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from lamina.blob.decode import decode_piece
from lamina.blob.split_table import SplitTable
from lamina.blob.table import ChunkTable, Piece
from lamina.codec.digest import Digester, digest
from lamina.erofs.chunk_digests import DigestSource
from lamina.erofs.layout import BLOCK_SIZE, ChunkEntry, round_up
from lamina.errors import Error, IntegrityError
from lamina.fetch.amplify import choose_spans
from lamina.fetch.fetcher import Fetcher
from lamina.fetch.parallel import Parallel
from lamina.fetch.recent import RecentBytes
from lamina.fetch.single_flight import Flight, SingleFlight
from lamina.fetch.source import Source, source_name
from lamina.fetch.spans import Span, plan_spans
from lamina.image.failure_log import FailureLog
from lamina.image.statistics import Statistics
from lamina.store.cache_blob import CacheBlob
from lamina.store.local_chunks import LocalChunks, blob_tag

LOG: Final = logging.getLogger("lamina")

RUN_BYTES: Final = 1 << 20
"""Neighbours of a pack are joined for one write up to this length."""


@dataclass(frozen=True, slots=True)
class BlobParts:
    """What a blob is filled with, and from.  ``local`` is None where nothing is shared."""

    table: ChunkTable
    digests: DigestSource
    fetcher: Fetcher
    cache: CacheBlob
    local: LocalChunks | None = None


@dataclass(slots=True)
class _Order:
    """One call of :meth:`BlobFiller.fill`: pieces by their first chunk, and what of them is
    wanted.
    """

    deadline: float
    wanted: dict[int, tuple[Piece, list[int]]]
    flights: dict[int, Flight[int]] = field(default_factory=dict)
    failures: list[Error] = field(default_factory=list)


class BlobFiller:
    """Fills one blob.  Threads share it, and each piece is fetched once however many want it."""

    def __init__(self, parts: BlobParts, parallel: Parallel) -> None:
        """Everything stays the caller's."""
        self._parts = parts
        self._parallel = parallel
        self._flights: SingleFlight[int] = SingleFlight()
        self._counting = threading.Lock()
        self._tag = blob_tag(parts.cache.path.stem)
        self._kind = Digester(parts.table.entry.digester)
        self._recent = RecentBytes() if parts.table.cuts_contexts else None
        self._failures = FailureLog()
        self.statistics = Statistics()

    def missing_bytes(self, *, elsewhere: bool) -> int:
        """As :meth:`lamina.image.lazy_blob.LazyBlob.missing_bytes`."""
        parts, total = self._parts, 0
        for chunk in range(parts.table.chunk_count):
            entry = None if parts.cache.is_ready(chunk) else parts.digests.find(chunk)
            # What no file refers to is never written.
            if entry is not None and (elsewhere or not self._is_elsewhere(entry)):
                total += round_up(entry.uncompressed_size, BLOCK_SIZE)
        return total

    def _is_elsewhere(self, entry: ChunkEntry) -> bool:
        return self._parts.local is not None and self._parts.local.knows(entry.digest)

    def fill(self, wanted: dict[int, tuple[Piece, list[int]]], deadline: float) -> None:
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
        """All that has to be fetched; a window and what it is needed for come at the same time."""
        for span in self._spans(pieces, order):
            yield partial(self._fetch_span, order, span)
            if isinstance(self._parts.table, SplitTable):
                for piece in filter(self._parts.table.lacks_window, span.pieces):
                    yield partial(self._parts.table.get_window, piece)

    def _spans(self, pieces: list[Piece], order: _Order) -> Sequence[Span[Piece]]:
        policy = choose_spans(self._parts.fetcher.link)
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
        with self._counting:
            self.statistics.ahead_bytes += end - span.offset - span.size
        return Span(span.offset, end - span.offset, pieces)

    def _from_here(self, piece: Piece, order: _Order) -> bool:
        """Get what is wanted of a piece without a source; False if some of it is still missing."""
        cache = self._parts.cache
        missing = [chunk for chunk in order.wanted[piece.first][1] if not cache.is_ready(chunk)]
        left = [chunk for chunk in missing if not self._get_local(chunk)]
        return not left

    def _get_local(self, chunk: int) -> bool:
        parts = self._parts
        doubtful = parts.cache.is_doubtful(chunk)
        if parts.local is None and not doubtful:
            return False
        entry = parts.digests.find(chunk)
        extent = parts.table.chunk_extent(chunk)
        if entry is None:
            # No file refers to it, so nothing of it is ever written.
            if parts.digests.overlaps(*extent):
                return False
            parts.cache.put((), range(chunk, chunk + 1))
            return True
        if (entry.uncompressed_offset, entry.uncompressed_size) != extent:
            return False
        if doubtful and self._salvage(chunk, entry):
            return True
        return parts.local is not None and self._copy(chunk, entry, parts.local)

    def _salvage(self, chunk: int, entry: ChunkEntry) -> bool:
        """Believe again what the file has from before a power cut, if the digest says so."""
        cache = self._parts.cache
        data = bytearray(entry.uncompressed_size)
        with cache.writing():
            if not cache.is_doubtful(chunk):
                return cache.is_ready(chunk)
            count = cache.read_into(entry.uncompressed_offset, memoryview(data))
            if count == len(data) and digest(self._kind, data) == entry.digest:
                cache.mark(chunk)
                self._count(Statistics(salvaged_bytes=count))
                return True
            cache.dispel(chunk)
        return False

    def _copy(self, chunk: int, entry: ChunkEntry, local: LocalChunks) -> bool:
        size, offset = entry.uncompressed_size, entry.uncompressed_offset
        cache, only = self._parts.cache, range(chunk, chunk + 1)
        for data, tag, source_offset in local.candidates(entry.digest, size):
            if digest(self._kind, data) != entry.digest:
                continue
            share = partial(self._share, local, tag, source_offset, offset, data)
            if not cache.take(chunk, offset, size, share):
                cache.put([(offset, data)], only)
            self._count(Statistics(copied_bytes=size))
            return True
        return False

    def _share(
        self, local: LocalChunks, tag: int, source_offset: int, offset: int, data: bytes
    ) -> bool:
        """Have the blocks in common with a neighbour, which may change until they are."""
        cache, again = self._parts.cache, bytearray(len(data))
        if not local.share(tag, source_offset, len(data), cache.fd, offset):
            return False
        return cache.read_into(offset, memoryview(again)) == len(data) and again == data

    def _fetch_span(self, order: _Order, span: Span[Piece]) -> None:
        if order.failures:
            return
        fetcher = self._parts.fetcher
        try:
            data, source = self._stored(span, order.deadline)
        except Error as error:
            self._log(span.pieces[0], error, fetcher)
            order.failures.append(error)
            for piece in span.pieces:
                self._flights.land(order.flights[piece.first], error)
            return
        view = memoryview(data)
        ahead: list[tuple[Piece, memoryview, Flight[int]]] = []
        for piece in span.pieces:
            start = piece.offset - span.offset
            stored = view[start : start + piece.size]
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
        source: Source,
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

    def _stored(self, span: Span[Piece], deadline: float) -> tuple[bytes, Source]:
        """Return the stored bytes of a span, and who sent them."""
        where = self._parts.table.blob_id, span.offset, span.size
        fetcher, fetched_bytes = self._parts.fetcher, span.size
        if self._recent is None:
            data, source = fetcher.fetch(*where, deadline=deadline)
        else:
            data, source, fetched_bytes = self._recent.fetch(fetcher, *where, deadline)
        if fetched_bytes:
            self._count(Statistics(requests=1, fetched_bytes=fetched_bytes))
        return data, source

    def _keep(self, piece: Piece, stored: memoryview, source: Source, deadline: float) -> None:
        """Verify a piece, write it and mark it; a damaged one is asked for elsewhere."""
        parts = self._parts
        chunks = self._decode(piece, stored, source, deadline)
        parts.cache.put(self._runs(chunks), range(piece.first, piece.first + piece.count))
        self._count(Statistics(decoded_pieces=1, decoded_bytes=piece.raw_size))
        self._offer(chunks)

    def _offer(self, chunks: list[tuple[int, memoryview]]) -> None:
        """Let other blobs of the node know what is here."""
        parts = self._parts
        if parts.local is None:
            return
        for chunk, data in chunks:
            entry = parts.digests.find(chunk)
            if entry is not None and len(data):
                parts.local.add(entry.digest, self._tag, entry.uncompressed_offset)

    def _decode(
        self, piece: Piece, stored: memoryview, source: Source, deadline: float
    ) -> list[tuple[int, memoryview]]:
        parts = self._parts
        blob_id = parts.table.blob_id
        try:
            return decode_piece(parts.table, piece, stored, parts.digests, blob_id)
        except IntegrityError as error:
            if self._recent is not None:
                self._recent.forget()
            if isinstance(parts.table, SplitTable):
                parts.table.forget_windows()
            where = piece.offset, piece.size
            others = parts.fetcher.others(blob_id, *where, than=source, deadline=deadline)
            for data, other in others:
                self._count(Statistics(requests=1, fetched_bytes=piece.size))
                try:
                    found = decode_piece(parts.table, piece, data, parts.digests, blob_id)
                except IntegrityError:
                    continue
                LOG.warning(
                    "%s sent damaged data, %s the right: %s",
                    source_name(source),
                    source_name(other),
                    error,
                )
                return found
            raise

    def _runs(
        self, chunks: list[tuple[int, memoryview]]
    ) -> Iterator[tuple[int, bytes | memoryview]]:
        """Join neighbours, with the zeros between them, so that a pack costs few writes."""
        parts: list[bytes | memoryview] = []
        start = end = 0
        for chunk, data in chunks:
            offset = self._parts.table.chunk_extent(chunk)[0]
            if parts and (offset != round_up(end, BLOCK_SIZE) or offset - start >= RUN_BYTES):
                yield start, parts[0] if len(parts) == 1 else b"".join(parts)
                parts = []
            if parts:
                parts.append(bytes(offset - end))
            else:
                start = offset
            parts.append(data)
            end = offset + len(data)
        if parts:
            yield start, parts[0] if len(parts) == 1 else b"".join(parts)

    def _count(self, more: Statistics) -> None:
        with self._counting:
            self.statistics.add(more)

    def _log(self, piece: Piece, error: Error, source: Source) -> None:
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
            source_name(source),
            error,
            more,
        )
