"""How much of an image is on this node, and getting the rest of it.

*Resident* is an image of which every chunk is ready, and stays: nothing of it is evicted or
collected, and no network is asked for it again, not even for what its tag points to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from lamina.content.completeness import EvictedError, check_room, flush_complete
from lamina.content.lazy_blob import LazyBlob
from lamina.content.lazy_image import FileChunk, LazyImage
from lamina.content.pass_keeper import ensure_patiently
from lamina.errors import Error, FormatError, UsageError
from lamina.image.base import Stat, shown
from lamina.posix.threads import start_thread
from lamina.source.reader_priority import TokenBucket
from lamina.source.request_sizing import background_span_bytes
from lamina.store.node import NodeStore
from lamina.store.records import ResidentRecord

LOG: Final = logging.getLogger("lamina")

STEP_BYTES: Final = 4 << 20
"""What each connection of a foreground transfer asks for at a time."""

RETRY_S: Final = 30.0
"""How long the background rests after a failure."""

Progress = Callable[[int], None]
"""Told the plain bytes that became ready, or were, since the last call."""


class Extent(NamedTuple):
    """A range of the uncompressed address space of one blob."""

    blob_index: int
    offset: int
    size_bytes: int


class BlobCoverage(NamedTuple):
    """How much of a blob is ready; in bytes of its uncompressed address space."""

    blob_id: str
    ready_chunks: int
    chunks: int
    ready_bytes: int
    size_bytes: int


class FileCoverage(NamedTuple):
    """How much of a file is ready."""

    path: bytes
    ready_bytes: int
    size_bytes: int


def all_extents(image: LazyImage) -> list[Extent]:
    """Return all of all blobs."""
    return [Extent(number, 0, blob.size_bytes) for number, blob in enumerate(image.blobs)]


def extents_of(image: LazyImage, stats: Iterable[Stat]) -> list[Extent]:
    """Return where the content of regular files is, in their order; others have none."""
    found: list[Extent] = []
    for stat in stats:
        if not stat.is_file:
            continue
        for chunk in image.chunks(stat):
            last = found[-1] if found else None
            start = chunk.blob_offset
            if last and last.blob_index == chunk.blob_index and start == last.offset + last[2]:
                found[-1] = last._replace(size_bytes=last.size_bytes + chunk.size_bytes)
            else:
                found.append(Extent(chunk.blob_index, start, chunk.size_bytes))
    return found


def files_below(image: LazyImage, paths: Iterable[str | bytes]) -> Iterator[Stat]:
    """Yield the files that *paths* name, or that are in the folders they name."""
    for path in paths:
        here = image.stat(path)
        if here.is_dir:
            yield from (stat for _, stat in image.walk(here) if stat.is_file)
        else:
            yield here


def prefetch_list(image: LazyImage) -> list[Stat]:
    """Return the files that the image itself wants to be fetched early (RAFS v6 §1.8), each once,
    in the order in which they first appear.
    """
    found: list[Stat] = []
    seen: set[int] = set()
    # Lazy all the way: entries may name a folder, and folders a file, any number of times.
    todo: list[Iterator[Stat]] = [map(image.stat_of, image.bootstrap.prefetch_nids)]
    while todo:
        here = next(todo[-1], None)
        if here is None:
            todo.pop()
        elif here.ino not in seen:
            seen.add(here.ino)
            if here.is_dir:
                todo.append(stat for _, stat in image.scandir(here))
            elif here.is_file:
                found.append(here)
    return found


def blob_coverage(image: LazyImage) -> list[BlobCoverage]:
    """Return how much of each blob is ready."""
    return [
        BlobCoverage(
            blob.blob_id,
            blob.cache.ready_count,
            blob.cache.chunk_count,
            blob.ready_bytes,
            blob.chunk_bytes,
        )
        for blob in image.blobs
    ]


def file_coverage(image: LazyImage) -> Iterator[FileCoverage]:
    """Yield how much of each regular file is ready, in the order of a walk.

    Raises FormatError if a chunk of a file is none of its blob's.
    """
    for path, stat in image.walk():
        if stat.is_file:
            chunks = image.chunks(stat)
            ready = sum(chunk.size_bytes for chunk in chunks if _is_ready(image, path, chunk))
            yield FileCoverage(path, ready, stat.size)


def _is_ready(image: LazyImage, path: bytes, chunk: FileChunk) -> bool:
    cache = image.blobs[chunk.blob_index].cache
    if chunk.chunk_index >= cache.chunk_count:
        raise FormatError(f"{shown(path)}: a chunk lies outside its blob")
    return cache.is_ready(chunk.chunk_index)


def fetch(image: LazyImage, extents: Iterable[Extent], progress: Progress | None = None) -> None:
    """Make *extents* ready as fast as possible.  Raises what reading them would.

    What a source sends only whole is read to its end, so that a cache keeps it.
    """
    telling = threading.Lock()

    def step(extent: Extent) -> None:
        blob = image.blobs[extent.blob_index]
        ensure_patiently(blob, extent.offset, extent.size_bytes)
        blob.cache.start_flush(extent.offset, extent.size_bytes)
        if progress is not None:
            with telling:
                progress(extent.size_bytes)

    # Whoever is done takes the next step, so the connections never wait for each other.
    image.run_parallel(step, _steps(extents))
    image.wait_for_passes()


def _steps(extents: Iterable[Extent]) -> Iterator[Extent]:
    for extent in extents:
        for start in range(0, extent.size_bytes, STEP_BYTES):
            size = min(STEP_BYTES, extent.size_bytes - start)
            yield Extent(extent.blob_index, extent.offset + start, size)


def fetch_gently(
    image: LazyImage,
    extents: Iterable[Extent],
    stopped: threading.Event,
    *,
    bucket: TokenBucket | None = None,
    progress: Progress | None = None,
) -> bool:
    """Make *extents* ready while nobody reads, at the rate of *bucket*.

    Returns False if it was stopped before the end.  Raises what reading them would.
    """
    for extent in extents:
        blob = image.blobs[extent.blob_index]
        if bucket is not None:
            blob.source.sequential_reads.limit(bucket)
        position, end = extent.offset, extent.offset + extent.size_bytes
        while position < end:
            size = min(background_span_bytes(blob.source.estimate), end - position)
            if not _fetch_idle(blob, position, size, stopped, bucket):
                return False
            position += size
            if progress is not None:
                progress(size)
    return not stopped.is_set()


def _fetch_idle(
    blob: LazyBlob, offset: int, size: int, stopped: threading.Event, bucket: TokenBucket | None
) -> bool:
    """Make a range ready once no reader waits; False if it was stopped before."""
    chunks = blob.table.chunks_in(offset, size)
    if blob.cache.first_missing(chunks.start, chunks.stop) >= 0:
        # Nothing is claimed while this waits, so no reader waits for it.
        if not blob.source.priority.wait_idle(size, bucket, stopped):
            return False
        ensure_patiently(blob, offset, size, background=True)
    return True


def pull(image: LazyImage, progress: Progress | None = None) -> None:
    """Fetch all of an image; when it returns, all of it is here.

    Raises StoreError if there cannot be room for it, before anything is fetched where that can be
    known, and EvictedError if it went again meanwhile; else what reading it would.
    """
    check_room(image)
    fetch(image, all_extents(image), progress)
    flush_complete(image)


class BackgroundFill:
    """Completes an image while it is used: first what it wants early, then the rest.

    Failures are logged and tried again later.  Close it before the image.
    """

    def __init__(self, image: LazyImage, *, bytes_per_s: float | None = None) -> None:
        """Start at once."""
        self._image = image
        self._bucket = TokenBucket(bytes_per_s) if bytes_per_s else None
        self._stopped = threading.Event()
        self.finished = threading.Event()
        """Set when every chunk is ready."""
        self._thread = start_thread(self._run, "lamina-fill")

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._complete()
                return
            except EvictedError as error:
                # Again and again would only move the bytes again and again.
                LOG.warning("the image is not completed in the background: %s", error)
                return
            except Error as error:
                LOG.warning("completing the image in the background failed: %s", error)
                self._stopped.wait(RETRY_S)
            except Exception:
                LOG.exception("completing the image in the background ended because of a defect")
                return

    def _complete(self) -> None:
        image = self._image
        extents = [*extents_of(image, prefetch_list(image)), *all_extents(image)]
        if fetch_gently(image, extents, self._stopped, bucket=self._bucket):
            flush_complete(image)
            self.finished.set()

    def close(self) -> None:
        """Stop; may be called again."""
        self._stopped.set()
        self._thread.join()


def make_resident(
    image: LazyImage, store: NodeStore, name: str, progress: Progress | None = None
) -> None:
    """Fetch all of an image and keep it for ever under *name*, the reference it was opened by.

    Raises what reading it would; then, or if the budget of the store does not allow it, the image
    is as resident as it was before.
    """
    reference = image.origin.reference if image.origin is not None else None
    if reference is None or reference.digest is None:
        raise UsageError("only an image that was opened by a reference can be made resident")
    records = store.records
    before = records.resident(name)
    accepted = image.origin.accepted if image.origin is not None else None
    record = ResidentRecord(
        name=name,
        blobs=tuple(sorted(blob.cache.path.stem for blob in image.blobs)),
        digest=reference.digest,
        accepted=accepted.digest if accepted is not None else None,
    )
    # First of all, or a budget would evict the beginning while the end arrives.
    records.keep_resident(record)
    try:
        pull(image, progress)
    except BaseException:
        records.release_resident(name)
        if before is not None:
            records.keep_resident(before)
        raise
    records.keep_resident(msgspec.structs.replace(record, complete=True))
