"""Filling the cache file of a layer that can be decoded only from its begin.

One pass of decompression goes on as far as somebody needs it, and keeps every chunk that it comes
by; so a whole layer is decompressed once however it is read.  Whoever waits for a chunk moves the
pass on in turn.  What was evicted behind it begins another pass.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Final

from lamina.content.blob_filler import Wanted
from lamina.content.chunk_keeper import BlobParts, ChunkKeeper
from lamina.content.failure_log import FailureLog
from lamina.content.sequential_layer import DecodedPiece, decode_sequentially
from lamina.content.statistics import Statistics
from lamina.errors import Error
from lamina.source.fetcher import Fetcher

LOG: Final = logging.getLogger("lamina")

REPORTS: Final = 10
"""How often a pass says how far it is."""


class SequentialFiller:
    """Fills one blob by decoding its layer from the begin.  Threads share it."""

    def __init__(self, parts: BlobParts, keeper: ChunkKeeper, fetcher: Fetcher) -> None:
        """Everything stays the caller's; *keeper* is that of *parts*."""
        self._parts = parts
        self._keeper = keeper
        self._fetcher = fetcher
        self._failures = FailureLog()
        self._turn = threading.Condition()
        self._moving = False
        self._failure: Error | None = None
        self._pass: Iterator[DecodedPiece] | None = None
        self._next_chunk = 0
        self.read_bytes = 0
        """Compressed bytes of the layer that the pass has read."""

    def fill(
        self,
        wanted: Wanted,
        deadline: float,  # noqa: ARG002 - see below
    ) -> None:
        """Get chunks from neighbours on this node, else by moving the pass on to them.

        The deadline is that of each request: a pass may take long, and goes on while bytes come.
        """
        is_ready = self._parts.cache.is_ready
        for chunk in (chunk for _, chunks in wanted.values() for chunk in chunks):
            if not is_ready(chunk) and not self._keeper.get_local(chunk):
                while self._wait_for_turn(chunk):
                    self._take_turn(chunk)

    def _wait_for_turn(self, chunk: int) -> bool:
        """Return True when it is the caller's turn to move the pass on; False when the chunk is
        ready.
        """
        is_ready = self._parts.cache.is_ready
        with self._turn:
            before = self._failure
            while self._moving and not is_ready(chunk):
                self._turn.wait()
                # A pass that failed fails for all who wait, or each would try as long again.
                if self._failure is not None and self._failure is not before:
                    raise self._failure
            if is_ready(chunk):
                return False
            self._moving = True
            return True

    def _take_turn(self, chunk: int) -> None:
        """Move the pass on by one piece, and let the others go on."""
        failure: Error | None = None
        moved = False
        try:
            if self._pass is None or self._next_chunk > chunk:
                self._begin()
            self._move()
            moved = True
        except Error as error:
            failure = error
            self._tell(error)
            raise
        finally:
            if not moved:
                self._pass = None
            with self._turn:
                self._failure = failure or self._failure
                self._moving = False
                self._turn.notify_all()

    def _tell(self, error: Error) -> None:
        more = self._failures.untold((self._next_chunk, type(error)))
        if more is not None:
            LOG.error("layer sha256:%s: %s%s", self._parts.table.blob_id, error, more)

    def _begin(self) -> None:
        parts = self._parts
        self.read_bytes = self._next_chunk = 0
        self._pass = decode_sequentially(parts.table, parts.digests, self._fetcher, self._arrived)
        entry = parts.table.entry
        LOG.info("layer sha256:%s, %d bytes, is decompressed", entry.blob_id, entry.compressed_size)

    def _move(self) -> None:
        """Decode the next piece and keep it."""
        assert self._pass is not None
        piece, chunks = next(self._pass)
        parts = self._parts
        stop = piece.first + piece.count
        if parts.cache.first_missing(piece.first, stop) >= 0:
            self._keeper.put(piece, chunks)
        self._next_chunk = stop
        if stop == parts.table.chunk_count:
            # Only now is the layer compared with its digest.
            for _ in self._pass:
                pass
            self._pass = None

    def _arrived(self, size_bytes: int) -> None:
        self._keeper.count(Statistics(requests=1, fetched_bytes=size_bytes))
        size = self._parts.table.entry.compressed_size
        before, self.read_bytes = self.read_bytes, self.read_bytes + size_bytes
        if before * REPORTS // size < self.read_bytes * REPORTS // size:
            share = 100 * self.read_bytes // size
            LOG.info("layer sha256:%s: %d %% decompressed", self._parts.table.blob_id, share)
