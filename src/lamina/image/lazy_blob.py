"""One blob of an opened image: what is missing is fetched, verified and kept when it is asked for.

Nothing that was not verified ever reaches the cache file: :meth:`LazyBlob.ensure` returns when the
range has been made ready, or raises and leaves what is missing marked as missing.  With a budget
for the node store, ready is not for ever: :meth:`LazyBlob.read_into` notices when a range is
evicted while it reads, a kernel does not.  Whoever lets a kernel read the file must hold the blob.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from lamina.blob.table import ChunkTable, Piece
from lamina.erofs.chunk_digests import DigestSource
from lamina.errors import StoreError
from lamina.fetch.fetcher import Fetcher, fetcher_of
from lamina.fetch.parallel import Parallel
from lamina.fetch.source import Source
from lamina.image.blob_filler import BlobFiller, BlobParts
from lamina.image.statistics import Statistics
from lamina.image.whole_filler import WholeFiller
from lamina.store.cache_blob import CacheBlob, StoreReadError
from lamina.store.local_chunks import LocalChunks

if TYPE_CHECKING:
    from lamina.linux.mount import SuperblockWatch

MOST_TURNS: Final = 1000
"""How often a reader gets its range ready again because it was evicted before it was read."""


class LazyBlob:
    """A blob whose content arrives as it is read.  Threads share it; all calls block.

    Closing it closes the cache file; *parallel* and *local* stay the caller's if they were given.
    """

    def __init__(
        self,
        table: ChunkTable,
        digests: DigestSource,
        source: Source,
        cache: CacheBlob,
        *,
        parallel: Parallel | None = None,
        local: LocalChunks | None = None,
    ) -> None:
        """Own *cache* from now on.  *table*, *digests* and *cache* must be of the same blob.

        *source* is asked once unless it is a Fetcher; *local* has the chunks of other blobs.
        """
        self.blob_id = table.blob_id
        self.table = table
        self.digests = digests
        self.source: Fetcher = fetcher_of(source)
        self.cache = cache
        self._own_parallel = parallel is None
        self._parallel = parallel or Parallel()
        parts = BlobParts(table, digests, self.source, cache, local)
        kind = WholeFiller if table.entry.is_read_whole else BlobFiller
        self._filler = kind(parts, self._parallel)

    @property
    def statistics(self) -> Statistics:
        """What it cost so far."""
        return self._filler.statistics

    @property
    def is_read_whole(self) -> bool:
        """Whether the layer has no points of entry, so that its first reader decompresses it from
        its begin, once.
        """
        return self.table.entry.is_read_whole

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
        """True if every chunk is ready.  Only while the blob is held does that stay so."""
        return self.cache.complete

    def hold(self) -> None:
        """Keep what is ready from being evicted until :meth:`let_go` or :meth:`close`.

        A device calls it before a kernel may read the file by itself: for a complete blob that is
        mounted as it is, and for all blobs of a fanotify device, whose readers go on after the
        answer.  See :meth:`lamina.store.cache_blob.CacheBlob.hold`.
        """
        self.cache.hold()

    def hold_if_complete(self) -> bool:
        """Hold the blob if it is complete; returns whether it is, and so will stay."""
        return self.cache.hold_if_complete()

    def hold_through(self, watch: SuperblockWatch) -> None:
        """Keep a blob that is held from being evicted even after the sudden end of this process,
        while the superblock exists: :meth:`lamina.store.cache_blob.CacheBlob.hold_through`.
        """
        self.cache.hold_through(watch)

    def let_go(self) -> None:
        """End one :meth:`hold`."""
        self.cache.let_go()

    def missing_bytes(self, *, elsewhere: bool = False) -> int:
        """Return what the chunks that are not ready will take on the disk, in blocks.

        With *elsewhere* those count too that other blobs of this node have.
        """
        return self._filler.missing_bytes(elsewhere=elsewhere)

    def ensure(self, offset: int, size_bytes: int, *, background: bool = False) -> None:
        """Return when this range of the uncompressed address space has been made ready.

        What lies beyond the end of the blob counts as ready.  With *background* others that
        prefetch need not wait for this call.

        Raises IntegrityError if the bytes are not the promised ones (from any source), FetchError
        if they do not come (DeadlineError, ETIMEDOUT, when it takes too long), StoreError if they
        cannot be written, and FormatError if the chunk table does not cover the range.  Whoever
        fetched logs each failure, and the same of the same piece once a minute.
        """
        self.ensure_ranges([(offset, size_bytes)], background=background)

    def ensure_ranges(self, ranges: Iterable[tuple[int, int]], *, background: bool = False) -> None:
        """The same for several ranges, (offset, size) each, with all requests in flight at once."""
        if self.cache.complete:
            return
        missing = self.cache.first_missing
        wanted = [self.table.chunks_in(offset, size) for offset, size in ranges]
        wanted = [chunks for chunks in wanted if missing(chunks.start, chunks.stop) >= 0]
        for window in self._windows(wanted):
            self._ensure_window(window, background=background)

    def _ensure_window(self, window: Sequence[range], *, background: bool) -> None:
        deadline = time.monotonic() + self.source.policy.deadline_s
        for _ in range(MOST_TURNS):
            pieces = self._missing(window)
            if not pieces:
                return
            with nullcontext() if background else self.source.traffic.foreground():
                self._filler.fill(pieces, deadline)
        raise self._overtaken()

    def _overtaken(self) -> StoreError:
        return StoreError(
            f"what is read of {self.path} is evicted faster than it can be read",
            hint="raise --store-budget",
        )

    def _windows(self, wanted: Sequence[range]) -> Iterator[list[range]]:
        """Cut what is wanted into parts that one call works on at a time.

        That bounds memory, what must be ready at one time, and how long others wait for a piece at
        the far end of a big range.
        """
        limit = self.cache.space.window_bytes
        if sum(map(self._plain_bytes, wanted)) <= limit:
            yield list(wanted)
            return
        window: list[range] = []
        size = 0
        for chunks in wanted:
            start = chunks.start
            for chunk in chunks:
                if size >= limit:
                    yield [*window, range(start, chunk)]
                    window, size, start = [], 0, chunk
                if not self.cache.is_ready(chunk):
                    size += self.table.chunk_extent(chunk)[1]
            window.append(range(start, chunks.stop))
        if window:
            yield window

    def _plain_bytes(self, chunks: range) -> int:
        """What chunks take of the address space; most reads are small, and are seen to be so."""
        extent = self.table.chunk_extent
        return sum(extent(chunks.stop - 1)) - extent(chunks.start)[0] if chunks else 0

    def _missing(self, window: Sequence[range]) -> dict[int, tuple[Piece, list[int]]]:
        """The pieces that have missing chunks in the window, by first chunk, and these chunks."""
        found: dict[int, tuple[Piece, list[int]]] = {}
        for chunks in window:
            chunk = self.cache.first_missing(chunks.start, chunks.stop)
            while chunk >= 0:
                piece = self.table.piece_holding(chunk)
                stop = min(piece.first + piece.count, chunks.stop)
                here = [n for n in range(chunk, stop) if not self.cache.is_ready(n)]
                found.setdefault(piece.first, (piece, []))[1].extend(here)
                chunk = self.cache.first_missing(stop, chunks.stop)
        return found

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the blob.

        Raises what :meth:`ensure` does.
        """
        view = memoryview(buffer).cast("B")
        size = max(min(len(view), self.size_bytes - offset), 0) if offset >= 0 else 0
        step = self.cache.space.window_bytes
        for start in range(0, size, step):
            part = view[start : min(start + step, size)]
            if self._read_window(offset + start, part) != len(part):
                raise StoreReadError(f"the cache file {self.path} is shorter than its blob")
        return size

    def _read_window(self, offset: int, view: memoryview) -> int:
        count = self.cache.read_complete(offset, view)
        if count >= 0:
            return count
        chunks = self.table.chunks_in(offset, len(view))
        for _ in range(MOST_TURNS):
            self._ensure_window([chunks], background=False)
            count = self.cache.read_ready(offset, view, chunks)
            if count >= 0:
                return count
        raise self._overtaken()

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
