"""Which blobs a source sends only whole, and the passes over them.

A source that ignored a range of a blob is asked for ranges of it again once a pass over the blob
has ended; until then, and as long as it still ignores them, readers get what came by.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO, Final

from lamina.errors import Error, FetchError
from lamina.source.blob_source import BlobSource, RangesIgnoredError
from lamina.source.reader_priority import ReaderPriority, TokenBucket
from lamina.source.retry import DeadlineError
from lamina.source.sequential_read import SETTLE_S, PassOptions, SequentialRead

LOG: Final = logging.getLogger("lamina")

PASSES_AT_ONCE: Final = 4
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0
REMEMBERED_S: Final = 30.0
MOST_IGNORED: Final = 8
"""How often a source may ignore ranges after a pass of which nothing was kept, until that is taken
for its way: a cache has a blob a moment after the last byte."""

Key = tuple[int, str]


class _IgnoredAgainError(FetchError):
    """A range was ignored after a pass of which nothing was kept; the next one may not be."""

    transient = True


class SequentialReads:
    """The passes of one fetcher, one at most a source and blob.  Threads share it."""

    def __init__(self, priority: ReaderPriority, *, settle_s: float = SETTLE_S) -> None:
        self.blob_sizes: Mapping[str, int] = {}
        """Bytes of the blobs that may be read whole, by id: no source says how much comes."""
        self.open_spool: Callable[[int], BinaryIO | None] = lambda _size_bytes: None
        """Gives a file with room for so many bytes; without one nothing is kept of a pass."""
        self.on_begin: Callable[[str], None] = lambda _blob_id: None
        """Told the id of a blob that a pass has begun over."""
        self._bucket: TokenBucket | None = None
        self._priority = priority
        self._settle_s = settle_s
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(PASSES_AT_ONCE)
        self._reads: dict[Key, SequentialRead] = {}
        self._failed: dict[Key, tuple[int, float]] = {}
        self._ignored: dict[Key, int] = {}
        self._whole_until: dict[Key, float] = {}
        self._closed = False

    def sends_whole(self, source: BlobSource, blob_id: str) -> bool:
        """Tell whether a source is known to send a blob only whole."""
        key = id(source), blob_id
        return key in self._reads or time.monotonic() < self._whole_until.get(key, 0.0)

    def note_ignored(self, source: BlobSource, blob_id: str) -> None:
        """Remember for a while that a source ignored a range, so that others are asked first."""
        self._whole_until[id(source), blob_id] = time.monotonic() + REMEMBERED_S

    def limit(self, bucket: TokenBucket) -> None:
        """Let passes take no more than *bucket* allows, while nobody waits for bytes."""
        if self._bucket is None:
            self._bucket = bucket.another()

    def begin(self, source: BlobSource, blob_id: str) -> bool:
        """Begin a pass, unless there is one; False if it cannot be made (now)."""
        key, size = (id(source), blob_id), self.blob_sizes.get(blob_id)
        if size is None or not source.can_stream:
            return False
        with self._lock:
            if self._closed or self._ignored.get(key, 0) >= MOST_IGNORED:
                return False
            if key in self._reads:
                return True
            if time.monotonic() < self._failed.get(key, (0, 0.0))[1]:
                return False
            name = source.name
            LOG.warning(
                "%s answers a range of blob %s with all of it, as a cache does that has not got "
                "it yet: %d bytes are read once to the end",
                *(name, blob_id, size),
            )
            options = PassOptions(
                name,
                blob_id,
                size,
                lambda: source.open_sequential(blob_id, size),
                self.open_spool(size),
                self._pace,
                self._settle_s,
            )
            self._reads[key] = SequentialRead(options, self._slots)
        self.on_begin(blob_id)
        return True

    def ask(
        self,
        source: BlobSource,
        what: tuple[str, int, memoryview],
        timeout_s: float,
        ask_range: Callable[[], None],
    ) -> bool:
        """Fill the buffer of *what* (blob id, offset, buffer); return whether *ask_range* did, or
        else a pass.

        Raises what *ask_range* raises: RangesIgnoredError where a pass is to be begun; and
        DeadlineError or FetchError if a pass does not come to the bytes in time.
        """
        key = id(source), what[0]
        read = self._reads.get(key)
        if read is None:
            ask_range()
            self._note_ranges(key)
            return True
        if read.take_turn_to_ask() and read.failure is None:
            try:
                ask_range()
            except RangesIgnoredError:
                LOG.debug("%s still ignores ranges of blob %s", source.name, what[0])
            else:
                self._note_ranges(key)
                self._drop(key, read)
                return True
        try:
            has_come = read.read_into(what[1], what[2], timeout_s)
        except DeadlineError:
            raise
        except Error:
            self._note_failure(key, read)
            raise
        if not has_come:
            self._ask_without_spool(key, read, ask_range)
        return not has_come

    def _ask_without_spool(
        self, key: Key, read: SequentialRead, ask_range: Callable[[], None]
    ) -> None:
        try:
            ask_range()
        except RangesIgnoredError as error:
            with self._lock:
                count = self._ignored[key] = self._ignored.get(key, 0) + 1
            if count < MOST_IGNORED:
                raise _IgnoredAgainError(str(error)) from error
            raise
        self._note_ranges(key)
        self._drop(key, read)

    def _note_ranges(self, key: Key) -> None:
        """Note that a source has answered a range: what it did before is not its way."""
        if key in self._ignored or key in self._failed:
            with self._lock:
                self._ignored.pop(key, None)
                self._failed.pop(key, None)

    def underway(self, blob_id: str) -> bool:
        """Tell whether a pass over a blob is going on."""
        return any(read.underway for read in self._of(blob_id))

    def wait(self) -> None:
        """Return when no pass is going on: what is given up before its end, a cache does not
        keep.
        """
        with self._lock:
            reads = list(self._reads.values())
        for read in reads:
            read.wait()

    def forget(self, blob_id: str) -> None:
        """Give back what is kept of a blob that is needed no more, as soon as no pass over it goes
        on: the last byte comes a moment before the end.
        """
        with self._lock:
            reads = [(key, read) for key, read in self._reads.items() if key[1] == blob_id]
        for key, read in reads:
            read.wait()
            self._drop(key, read)

    def close(self) -> None:
        """End all passes where they are, and begin none; may be called again."""
        with self._lock:
            self._closed = True
            reads, self._reads = self._reads, {}
        for read in reads.values():
            read.close()

    def _of(self, blob_id: str) -> list[SequentialRead]:
        with self._lock:
            return [read for (_, name), read in self._reads.items() if name == blob_id]

    def _note_failure(self, key: Key, read: SequentialRead) -> None:
        """Let the next reader after a while begin anew."""
        with self._lock:
            if self._reads.get(key) is not read:
                return
            count = self._failed.get(key, (0, 0.0))[0]
            pause_s = min(FIRST_PAUSE_S * 2.0 ** min(count, 16), LONGEST_PAUSE_S)
            self._failed[key] = count + 1, time.monotonic() + pause_s
        self._drop(key, read)

    def _drop(self, key: Key, read: SequentialRead) -> None:
        """Give back what a pass kept, which may be another's by now or closed."""
        with self._lock:
            if self._reads.get(key) is read:
                del self._reads[key]
        read.close()

    def _pace(self, size_bytes: int, stopped: threading.Event) -> None:
        bucket = self._bucket
        while bucket is not None and not stopped.is_set():
            pause_s = bucket.take(size_bytes)
            # Who waits for bytes may wait for these, and is never slowed down.
            if pause_s <= 0 or self._priority.has_readers:
                return
            stopped.wait(min(pause_s, 0.2))
