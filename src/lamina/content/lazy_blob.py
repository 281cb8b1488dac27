"""One blob of an opened image: what is missing is fetched, verified and kept when it is asked for.

Nothing that was not verified ever reaches the cache file: :meth:`LazyBlob.ensure` returns when the
range has been made ready, or raises and leaves what is missing marked as missing.  With a budget
for the node store, ready is not for ever: :meth:`LazyBlob.read_into` notices when a range is
evicted while it reads, a kernel does not.  Whoever lets a kernel read the file must hold the blob.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from lamina.blob.table import ChunkTable
from lamina.content.blob_filler import BlobFiller, Filler, Wanted
from lamina.content.chunk_keeper import BlobParts, ChunkKeeper
from lamina.content.sequential_filler import SequentialFiller
from lamina.content.statistics import Statistics
from lamina.erofs.chunk_digests import DigestSource
from lamina.errors import StoreError
from lamina.image.ready_bytes import ReadyBytes
from lamina.source.fetcher import Fetcher
from lamina.source.parallel import Parallel
from lamina.store.cache_blob import CacheBlob, StoreReadError
from lamina.store.local_chunks import LocalChunks

if TYPE_CHECKING:
    from lamina.content.read_log import ReadLog
    from lamina.linux.superblock import SuperblockWatch

MOST_TURNS: Final = 1000
"""How often a reader gets its range ready again because it was evicted before it was read."""


class EarlyPages(Protocol):
    """Verified parts of blobs that came ahead of the chunks that they belong to."""

    def read_into(self, blob_id: str, offset: int, view: memoryview) -> bool:
        """Fill *view* and return True, or False if some of it will not come."""


class LazyBlob:
    """A blob whose content arrives as it is read.  Threads share it; all calls block.

    Closing it closes the cache file; *parallel* and *local* stay the caller's if they were given.
    """

    def __init__(
        self,
        table: ChunkTable,
        digests: DigestSource,
        fetcher: Fetcher,
        cache: CacheBlob,
        *,
        parallel: Parallel | None = None,
        local: LocalChunks | None = None,
        early: EarlyPages | None = None,
        doubt: Callable[[], None] | None = None,
    ) -> None:
        """Own *cache* from now on.  *table*, *digests* and *cache* must be of the same blob.

        Its pieces come from *fetcher*; *local* has the chunks of other blobs; *early* is
        asked before a chunk that is missing is fetched; *doubt* is called when *table* contradicts
        all that comes.
        """
        self.blob_id = table.blob_id
        self.table = table
        self.digests = digests
        self.source = fetcher
        self.cache = cache
        self.early = early
        self._reads: ReadLog | None = None
        self._own_parallel = parallel is None
        self._parallel = parallel or Parallel()
        parts = BlobParts(table, digests, cache, local, doubt)
        self._keeper = ChunkKeeper(parts)
        self._filler = self._strategy(parts)
        self._ready_bytes = ReadyBytes(cache.chunk_count, lambda n: table.chunk_extent(n)[1])

    def _strategy(self, parts: BlobParts) -> Filler:
        if self.is_read_whole:
            return SequentialFiller(parts, self._keeper, self.source)
        return BlobFiller(parts, self._keeper, self.source, self._parallel)

    @property
    def statistics(self) -> Statistics:
        """What it cost so far."""
        return self._keeper.statistics

    @property
    def is_read_whole(self) -> bool:
        """Whether the layer has no access points, so that its first reader decompresses it from
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
        """True if every chunk is ready.  Only while the blob is held does that stay so.

        While reads are recorded it is not, so that a kernel asks for all that it reads.
        """
        return self.cache.complete and self._reads is None

    def record(self, reads: ReadLog) -> None:
        """Note all that is read of the blob from now on.  Call it before the blob is mounted."""
        self._reads = reads

    @property
    def ready_count(self) -> int:
        """How many chunks are ready."""
        return self.cache.ready_count

    @property
    def ready_bytes(self) -> int:
        """The bytes of the chunks that are ready."""
        return self._ready_bytes.update(self.cache.chunk_states())

    @property
    def chunk_bytes(self) -> int:
        """The bytes of all chunks: the address space without what lies between them."""
        return self._ready_bytes.total_bytes

    def hold(self) -> None:
        """Keep what is ready from being evicted until :meth:`end_hold` or :meth:`close`.

        A device calls it before a kernel may read the file by itself: for a complete blob that is
        mounted as it is, and for all blobs of a fanotify device, whose readers go on after the
        answer.  See :meth:`lamina.store.cache_blob.CacheBlob.hold`.
        """
        self.cache.hold()

    def hold_if_complete(self) -> bool:
        """Hold the blob if it is complete; returns whether it is, and so will stay."""
        return self._reads is None and self.cache.hold_if_complete()

    def hold_through(self, watch: SuperblockWatch, owner: str = "") -> None:
        """Keep a blob that is held from being evicted even after the sudden end of this process,
        while the superblock exists: :meth:`lamina.store.cache_blob.CacheBlob.hold_through`.
        """
        self.cache.hold_through(watch, owner)

    def settle_hold(self, owner: str) -> None:
        """Tidy up after a mount that has ended, and may have called :meth:`hold_through`."""
        self.cache.settle_hold(owner)

    def end_hold(self) -> None:
        """End one :meth:`hold`."""
        self.cache.end_hold()

    def missing_bytes(self, *, elsewhere: bool = False) -> int:
        """Return what the chunks that are not ready will take on the disk, in blocks.

        With *elsewhere* those count too that other blobs of this node have.
        """
        return self._keeper.missing_bytes(elsewhere=elsewhere)

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        """Return whether this range can be read now without fetching; it may be evicted again."""
        return self.cache.complete or self.has(offset, size_bytes)

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
        """Make several ranges ready, (offset, size) each, with all requests in flight at once."""
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
            with nullcontext() if background else self.source.priority.foreground():
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
        """Return what chunks take of the address space; most reads are small, and are seen to be
        so.
        """
        extent = self.table.chunk_extent
        return sum(extent(chunks.stop - 1)) - extent(chunks.start)[0] if chunks else 0

    def _missing(self, window: Sequence[range]) -> Wanted:
        """Return the pieces that have missing chunks in the window, by first chunk, and these
        chunks.
        """
        found: Wanted = {}
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
        if self._reads is not None and size:
            self._reads.note(self.blob_id, offset, size)
        step = self.cache.space.window_bytes
        for start in range(0, size, step):
            part = view[start : min(start + step, size)]
            if self._read_window(offset + start, part) != len(part):
                raise StoreReadError(f"the cache file {self.path} is shorter than its blob")
        return size

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view* if all of the range is here now; if not (False), its content means nothing.

        Raises StoreError, and FormatError if the chunk table does not cover the range.
        """
        if self._reads is not None:
            return False
        count = self.cache.read_complete(offset, view)
        if count < 0:
            chunks = self.table.chunks_in(offset, len(view))
            count = self.cache.read_ready(offset, view, chunks)
        return count == len(view)

    def read_cached(self, offset: int, view: memoryview) -> bool:
        """Do as :meth:`read_ready`, and return False where a disk would have to be waited for."""
        if self._reads is not None or not 0 <= offset <= self.size_bytes - len(view):
            return False
        return self.cache.read_cached(offset, view, self.table.chunks_in(offset, len(view)))

    def _read_window(self, offset: int, view: memoryview) -> int:
        count = self.cache.read_complete(offset, view)
        if count >= 0:
            return count
        chunks = self.table.chunks_in(offset, len(view))
        early = self.early
        if early is not None and self.cache.first_missing(chunks.start, chunks.stop) >= 0:
            if early.read_into(self.blob_id, offset, view):
                return len(view)
            if len(chunks) > 1:
                return self._read_by_chunk(offset, view, chunks)
        return self._read_ordinary(offset, view, chunks)

    def _read_by_chunk(self, offset: int, view: memoryview, chunks: range) -> int:
        """Take what came early of each chunk, and read the rest all the same."""
        assert self.early is not None
        rest: list[tuple[int, int]] = []
        end = offset + len(view)
        for chunk in chunks:
            start = max(self.table.chunk_extent(chunk)[0], offset)
            stop = min(self.table.chunk_extent(chunk + 1)[0], end) if chunk + 1 in chunks else end
            part = view[start - offset : stop - offset]
            if self.cache.is_ready(chunk) or not self.early.read_into(self.blob_id, start, part):
                if rest and rest[-1][1] == start:
                    rest[-1] = rest[-1][0], stop
                else:
                    rest.append((start, stop))
        self.ensure_ranges((start, stop - start) for start, stop in rest)
        for start, stop in rest:
            part = view[start - offset : stop - offset]
            if self._read_ordinary(start, part, self.table.chunks_in(start, len(part))) != len(
                part
            ):
                return start - offset
        return len(view)

    def _read_ordinary(self, offset: int, view: memoryview, chunks: range) -> int:
        for _ in range(MOST_TURNS):
            self._ensure_window([chunks], background=False)
            count = self.cache.read_ready(offset, view, chunks)
            if count >= 0:
                return count
        raise self._overtaken()

    def has(self, offset: int, size_bytes: int) -> bool:
        """Return whether this range of the uncompressed address space is ready now.

        Raises FormatError if the chunk table does not cover it.
        """
        chunks = self.table.chunks_in(offset, size_bytes)
        return self.cache.first_missing(chunks.start, chunks.stop) < 0

    def keep(self, chunk: int, offset: int, data: memoryview) -> None:
        """Keep the whole content of a chunk, which lies at *offset* and was verified.

        Raises StoreError.
        """
        if not self.cache.is_ready(chunk):
            self.cache.put([(offset, data)], range(chunk, chunk + 1))

    def make_readable(self, offset: int, size_bytes: int) -> None:
        """Return when a kernel may read this range of the cache file by itself.

        As :meth:`ensure`, but pages that came ahead are enough: they are written to the file, and
        their chunks stay missing.  Only for a blob that is held, or they might be evicted.
        """
        size = min(size_bytes, self.size_bytes - offset)
        if self.early is not None and size > 0 and not self.has(offset, size):
            data = memoryview(bytearray(size))
            if self.early.read_into(self.blob_id, offset, data):
                self.cache.put([(offset, data)], range(0))
                return
        self.ensure(offset, size_bytes)

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
