"""One blob of an opened image: what is missing is fetched, verified and kept when it is asked for.

Nothing that was not verified ever reaches the cache file: :meth:`LazyBlob.ensure` returns when the
range is ready, or raises and leaves what is missing marked as missing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from lamina.blob.decode import decode_piece
from lamina.blob.table import ChunkTable, Piece
from lamina.erofs.chunk_digests import DigestSource
from lamina.erofs.layout import BLOCK_SIZE, round_up
from lamina.errors import Error, FetchError, IntegrityError
from lamina.fetch.parallel import Parallel
from lamina.fetch.single_flight import Flight, SingleFlight
from lamina.fetch.source import Source, source_name
from lamina.fetch.spans import Span, plan_spans
from lamina.store.cache_blob import CacheBlob
from lamina.store.files import store_error

LOG: Final = logging.getLogger("lamina")

WINDOW_BYTES: Final = 16 << 20
"""Plaintext that one call of ensure works on at a time.

It bounds memory, and how long others wait for a piece at the far end of a big range.
"""

RUN_BYTES: Final = 1 << 20
"""Neighbours of a pack are joined for one write up to this length."""

Write: TypeAlias = Callable[[int, bytes | bytearray | memoryview], None]


@dataclass(slots=True)
class Statistics:
    """What one blob cost so far."""

    requests: int = 0
    fetched_bytes: int = 0
    decoded_pieces: int = 0
    decoded_bytes: int = 0

    def add(self, other: Statistics) -> None:
        """Add what another blob cost."""
        self.requests += other.requests
        self.fetched_bytes += other.fetched_bytes
        self.decoded_pieces += other.decoded_pieces
        self.decoded_bytes += other.decoded_bytes


class LazyBlob:
    """A blob whose content arrives as it is read.  Threads share it; all calls block.

    Closing it closes the cache file; *parallel* stays the caller's if it was given.
    """

    def __init__(
        self,
        table: ChunkTable,
        digests: DigestSource,
        source: Source,
        cache: CacheBlob,
        *,
        parallel: Parallel | None = None,
    ) -> None:
        """Own *cache* from now on.  *table*, *digests* and *cache* must be of the same blob."""
        self.blob_id = table.blob_id
        self.table = table
        self.digests = digests
        self.source = source
        self.cache = cache
        self.statistics = Statistics()
        self._flights: SingleFlight[int] = SingleFlight()
        self._counting = threading.Lock()
        self._own_parallel = parallel is None
        self._parallel = parallel or Parallel()

    @property
    def size_bytes(self) -> int:
        """Length of the uncompressed address space, which is that of the cache file."""
        return self.cache.size_bytes

    @property
    def fd(self) -> int:
        """The open cache file."""
        return self.cache.fd

    @property
    def path(self) -> Path:
        """The cache file."""
        return self.cache.path

    @property
    def complete(self) -> bool:
        """True once every chunk is ready; this never changes back."""
        return self.cache.complete

    def ensure(self, offset: int, size_bytes: int, *, write: Write | None = None) -> None:
        """Return when this range of the uncompressed address space is ready.

        What lies beyond the end of the blob counts as ready.  *write* is used for what this call
        fetches instead of writing to the cache file itself; it must write all of the buffer to
        that same file, may raise OSError, and is called from several threads at once.

        Raises IntegrityError if the bytes are not the promised ones (after asking once more),
        FetchError if they do not come, StoreError if they cannot be written, and FormatError if
        the chunk table does not cover the range.  Whoever fetched logs each failure, once.
        """
        if self.cache.complete:
            return
        chunks = self.table.chunks_in(offset, size_bytes)
        while True:
            missing = self.cache.first_missing(chunks.start, chunks.stop)
            if missing < 0:
                return
            self._fill(range(missing, chunks.stop), write or self.cache.write)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the blob.

        Raises what :meth:`ensure` does.
        """
        view = memoryview(buffer).cast("B")
        self.ensure(offset, len(view))
        return self.cache.read_into(offset, view)

    def _fill(self, chunks: range, write: Write) -> None:
        """Fetch the missing pieces at the beginning of *chunks*, or wait for who does."""
        wanted = {piece.first: piece for piece in self._missing_pieces(chunks)}
        mine, others = self._flights.claim(wanted)
        flights = {flight.key: flight for flight in mine}
        failures: list[Error] = []
        try:
            # Some may have become ready between looking and claiming.
            pieces = [wanted[first] for first in flights if not self.cache.is_ready(first)]
            spans = plan_spans(pieces)
            self._parallel.run(partial(self._fetch_span, flights, failures, write), spans)
        finally:
            # What lands without an error and is not ready was given up: who waited tries itself.
            for flight in mine:
                self._flights.land(flight)
        if failures:
            raise failures[0]
        for flight in others:
            error = flight.wait()
            if error is not None:
                raise error

    def _missing_pieces(self, chunks: range) -> Iterator[Piece]:
        left = WINDOW_BYTES
        chunk = self.cache.first_missing(chunks.start, chunks.stop)
        while chunk >= 0 and left > 0:
            piece = self.table.piece_holding(chunk)
            yield piece
            left -= piece.raw_size
            chunk = self.cache.first_missing(piece.first + piece.count, chunks.stop)

    def _fetch_span(
        self,
        flights: dict[int, Flight[int]],
        failures: list[Error],
        write: Write,
        span: Span[Piece],
    ) -> None:
        if failures:
            return
        try:
            view = memoryview(self._request(span.offset, span.size))
        except Error as error:
            self._log(span.pieces[0], error)
            failures.append(error)
            for piece in span.pieces:
                self._flights.land(flights[piece.first], error)
            return
        for piece in span.pieces:
            start = piece.offset - span.offset
            try:
                self._keep(piece, view[start : start + piece.size], write)
            except Error as error:
                self._log(piece, error)
                failures.append(error)
                self._flights.land(flights[piece.first], error)
            else:
                self._flights.land(flights[piece.first])

    def _request(self, offset: int, size_bytes: int) -> bytes:
        data = self.source.read_range(self.blob_id, offset, size_bytes)
        if len(data) != size_bytes:
            raise FetchError(f"{len(data)} bytes arrived where {size_bytes} were asked for")
        with self._counting:
            self.statistics.requests += 1
            self.statistics.fetched_bytes += size_bytes
        return data

    def _keep(self, piece: Piece, stored: memoryview, write: Write) -> None:
        """Verify a piece, write it and mark it; a damaged one is asked for once more."""
        try:
            chunks = decode_piece(self.table, piece, stored, self.digests, self.blob_id)
        except IntegrityError:
            again = self._request(piece.offset, piece.size)
            chunks = decode_piece(self.table, piece, again, self.digests, self.blob_id)
        try:
            for offset, data in self._runs(chunks):
                write(offset, data)
        except OSError as error:
            raise store_error(f"write to {self.path}", error) from error
        self.cache.mark(piece.first, piece.count)
        with self._counting:
            self.statistics.decoded_pieces += 1
            self.statistics.decoded_bytes += piece.raw_size

    def _runs(
        self, chunks: list[tuple[int, memoryview]]
    ) -> Iterator[tuple[int, bytes | memoryview]]:
        """Join neighbours, with the zeros between them, so that a pack costs few writes."""
        parts: list[bytes | memoryview] = []
        start = end = 0
        for chunk, data in chunks:
            offset = self.table.chunk_extent(chunk)[0]
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

    def _log(self, piece: Piece, error: Error) -> None:
        LOG.error(
            "blob %s, chunks %d to %d, %d bytes at offset %d from %s: %s",
            self.blob_id,
            piece.first,
            piece.first + piece.count - 1,
            piece.size,
            piece.offset,
            source_name(self.source),
            error,
        )

    def close(self) -> None:
        """Close the cache file; may be called again.  Nobody may be reading any more."""
        if self._own_parallel:
            self._parallel.close()
        self.cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
