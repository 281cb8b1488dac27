"""One blob on this node: a sparse file in the blob's uncompressed address space, and its readiness.

The file is as long as the address space and can be a device of a kernel mount.  A chunk is written
and only then marked.  Nothing here verifies anything: the caller has done so before it writes.

What is ready can be evicted again when the store's budget wants it (:mod:`lamina.store.space`), so
reads go through :meth:`CacheBlob.read_ready`, which notices.  A kernel that reads the file by
itself does not: while it may, the blob must be held with :meth:`CacheBlob.hold`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeAlias

from lamina.errors import StoreError, os_hint
from lamina.posix.file_space import forget_pages
from lamina.posix.write import write_all
from lamina.store.files import store_error, store_errors
from lamina.store.holds import HoldRecord
from lamina.store.locks import Lock, lock_shared, unlock
from lamina.store.readiness import ReadinessMap, use_time

if TYPE_CHECKING:
    from lamina.linux.superblock import SuperblockWatch
    from lamina.store.space import Space

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)

Data: TypeAlias = bytes | bytearray | memoryview


class StoreReadError(StoreError):
    """A cache file does not give back what was put into it."""

    errno: ClassVar[int] = errno.EIO


class CacheBlob:
    """An open cache file.  Threads and processes may share one blob; close it when all are done."""

    def __init__(
        self, path: Path, fd: int, readiness: ReadinessMap, lock_fd: int, space: Space
    ) -> None:
        """Own both descriptors and *readiness* from now on."""
        self.path = path
        self.fd = fd
        self.size_bytes = readiness.size_bytes
        self.chunk_count = readiness.chunk_count
        self.space = space
        self.lock_fd = lock_fd
        """Carries the locks: a process that is to keep a hold must keep this open."""
        self._readiness = readiness
        self._progress = readiness.generation, 0
        self._writing = threading.Lock()
        self._holding = threading.Lock()
        self._holds = 0
        self._records: dict[str, HoldRecord] = {}
        lock_shared(lock_fd, Lock.OPEN)

    def is_ready(self, chunk: int) -> bool:
        """Tell whether *chunk* is ready."""
        return self._readiness.is_ready(chunk)

    def first_missing(self, first: int, stop: int) -> int:
        """Return the first chunk of ``[first, stop)`` that is not ready, -1 if all are."""
        return self._readiness.first_missing(first, stop)

    def mark(self, first: int, count: int = 1) -> None:
        """Make chunks ready for every process that has the blob open; write their data first.

        Data that may be evicted meanwhile is written and marked at once by :meth:`put`.
        """
        self._readiness.mark(first, count)

    def is_unverified(self, chunk: int) -> bool:
        """Tell whether the file may hold *chunk* from before the last boot, to be verified."""
        return self._readiness.is_unverified(chunk)

    def clear_unverified(self, first: int, count: int = 1) -> None:
        """Forget what the file may hold of these chunks."""
        self._readiness.clear_unverified(first, count)

    @property
    def complete(self) -> bool:
        """True if every chunk is ready; it stays so while the blob is held."""
        readiness = self._readiness
        generation = readiness.generation
        # One tuple, or a thread that is overtaken by an eviction notes what it saw before as new.
        seen, first = self._progress
        if seen != generation:
            first = 0
        # Between evictions marks are only added, so what was ready need not be looked at again.
        if first < self.chunk_count:
            found = readiness.first_missing(first, self.chunk_count)
            first = found if found >= 0 else self.chunk_count
            self._progress = generation, first
        return first >= self.chunk_count

    def chunk_states(self) -> bytes:
        """Return a byte for each chunk: 1 if it is ready, else 0."""
        return self._readiness.states()

    @property
    def ready_count(self) -> int:
        """How many chunks are ready."""
        return self._readiness.ready_count

    def put(self, parts: Iterable[tuple[int, Data]], chunks: range) -> None:
        """Write *parts*, (offset, data) each, and then mark *chunks*.

        Makes room first if the store has a budget, and when the disk is full.  Raises StoreError.
        """
        todo = list(parts)
        size = sum(-(-len(data) // 4096) * 4096 for _, data in todo)
        try:
            with self.space.room(size):
                self._put_or_evict(todo, size, chunks)
        except OSError as error:
            raise store_error(f"write to {self.path}", error) from error

    def _put_or_evict(self, todo: list[tuple[int, Data]], size: int, chunks: range) -> None:
        try:
            self._put(todo, chunks)
        except OSError as error:
            if not self.space.make_more(error, size):
                raise
            self._put(todo, chunks)

    def _put(self, todo: list[tuple[int, Data]], chunks: range) -> None:
        with self.writing():
            for offset, data in todo:
                write_all(self.fd, data, offset)
            self._readiness.mark(chunks.start, len(chunks))
            if todo:
                start, (last, data) = todo[0][0], todo[-1]
                self._readiness.touch(start, last + len(data) - start, use_time())

    def take(self, chunk: int, offset: int, size_bytes: int, place: Callable[[], bool]) -> bool:
        """Mark *chunk* if *place* says that it put it at *offset*, by other means than writing.

        Nothing is evicted between the two.  Makes room as :meth:`put` does; raises StoreError.
        """
        what = store_errors(f"write to {self.path}")
        with what, self.space.room(size_bytes), self.writing():
            if not place():
                return False
            self._readiness.mark(chunk, 1)
            self._readiness.touch(offset, size_bytes, use_time())
            return True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep evictions away; for a moment only, and never while waiting for anybody."""
        with self._writing:
            lock_shared(self.lock_fd, Lock.WRITE)
            try:
                yield
            finally:
                unlock(self.lock_fd, Lock.WRITE)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill *buffer* from the file, whatever is there; returns the count.  Raises StoreError."""
        size = len(buffer)
        try:
            count = filled = os.preadv(self.fd, [buffer], offset)
            while count and filled < size:
                count = os.preadv(self.fd, [buffer[filled:]], offset + filled)
                filled += count
        except OSError as error:
            raise StoreReadError(
                f"cannot read {self.path}: {error.strerror}", hint=os_hint(error)
            ) from error
        return filled

    def read_ready(self, offset: int, buffer: memoryview, chunks: range) -> int:
        """Fill *buffer* from the file if *chunks*, which it lies in, are ready all the while.

        Returns the count, or -1 if one was not, or was evicted before the data had been read; then
        the content of *buffer* means nothing.  Raises StoreError.
        """
        generation = self._readiness.generation
        if self._readiness.first_missing(chunks.start, chunks.stop) >= 0:
            return -1
        return self._read_unless_evicted(offset, buffer, generation)

    def read_cached(self, offset: int, buffer: memoryview, chunks: range) -> bool:
        """Read as :meth:`read_ready`, but only what the system has in memory; tell whether that was
        all.  Never raises: another way of reading tells what is wrong.
        """
        readiness = self._readiness
        generation = readiness.generation
        if readiness.first_missing(chunks.start, chunks.stop) >= 0:
            return False
        try:
            count = os.preadv(self.fd, [buffer], offset, _NOWAIT)
        except OSError:
            return False
        if count != len(buffer) or readiness.generation != generation:
            return False
        if self.space.evicts:
            readiness.touch(offset, count, use_time())
        return True

    def read_complete(self, offset: int, buffer: memoryview) -> int:
        """Read only if the whole blob is ready, which costs less to find out; -1 if it is not."""
        generation = self._readiness.generation
        if self._progress != (generation, self.chunk_count) and not self.complete:
            return -1
        return self._read_unless_evicted(offset, buffer, generation)

    def _read_unless_evicted(self, offset: int, buffer: memoryview, generation: int) -> int:
        count = self.read_into(offset, buffer)
        if self._readiness.generation != generation:
            return -1
        if self.space.evicts:
            self._readiness.touch(offset, len(buffer), use_time())
        return count

    def hold(self) -> None:
        """Keep all of the blob from being evicted until :meth:`end_hold`; calls nest.

        For a kernel that reads the file without asking, as it does with a complete blob, or between
        the answer to a fanotify event and the end of the read that it allowed.  The hold belongs to
        ``lock_fd``: it lasts while any process has that open.
        """
        with self._holding:
            if self._holds == 0:
                lock_shared(self.lock_fd, Lock.KERNEL)
            self._holds += 1

    def hold_if_complete(self) -> bool:
        """Hold the blob if it is complete and return whether it is, and so will stay."""
        self.hold()
        if self.complete:
            return True
        self.end_hold()
        return False

    def end_hold(self) -> None:
        """End one hold."""
        with self._holding:
            if self._holds:
                self._holds -= 1
                if self._holds == 0:
                    unlock(self.lock_fd, Lock.KERNEL)

    def hold_through(self, watch: SuperblockWatch, owner: str = "") -> None:
        """Keep the blob from being evicted while the superblock that *watch* knows exists, whatever
        becomes of this process.

        Called before the mount is made, with a watch that was made just then, and again when it has
        seen the mount.  *owner* names the mount, where several read one blob.  Raises StoreError.
        """
        with self._holding:
            record = self._records.get(owner)
            if record is None:
                record = self._records[owner] = HoldRecord(self.space.root, self.path.stem)
        record.write(watch.before, watch.paths)

    def settle_hold(self, owner: str) -> None:
        """Remove the record of :meth:`hold_through` unless the superblock is still there."""
        with self._holding:
            record = self._records.pop(owner, None)
        if record is not None:
            record.settle()

    def start_flush(self, offset: int, size_bytes: int) -> None:
        """Start writing a range to the disk, so that :meth:`flush` has less left to wait for."""
        forget_pages(self.fd, offset, size_bytes)

    def flush(self) -> None:
        """Make a complete blob outlive a power cut; others are verified again after one."""
        with self.writing():
            if self.complete and not self._readiness.clean:
                os.fdatasync(self.fd)
                self._readiness.set_clean()

    def close(self) -> None:
        """Close the file; a complete blob is flushed first, so that it outlives a reboot."""
        if self.fd < 0:
            return
        try:
            self.flush()
        except OSError:
            # Not flushed means not clean: the next boot verifies the blob again.
            pass
        finally:
            fd, self.fd = self.fd, -1
            for owner in list(self._records):
                self.settle_hold(owner)
            self._readiness.close()
            os.close(self.lock_fd)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
