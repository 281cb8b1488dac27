"""The blobs of an opened image, each opened when it is first read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, overload

from lamina.blob.table import ChunkTable
from lamina.content.image_blobs import ImageBlobs
from lamina.content.lazy_blob import LazyBlob
from lamina.content.pass_keeper import PassKeeper
from lamina.content.table_loader import SealedParts, TableLoader
from lamina.erofs.layout import BlobEntry, BlobFeature
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, UnsupportedError, UsageError
from lamina.source.fetcher import Fetcher
from lamina.source.parallel import Parallel
from lamina.store.local_chunks import LocalChunks
from lamina.store.node import NodeStore
from lamina.store.records import MetadataFiles

if TYPE_CHECKING:
    from lamina.content.start_pages import StartPages

T = TypeVar("T")

ZONE_BYTES: Final = 1 << 20
"""About what is evicted at a time, unless that makes more than :data:`MOST_ZONES`."""

MOST_ZONES: Final = 256

UNSUPPORTED: Final = {
    BlobFeature.ENCRYPTED: "is encrypted with AES-XTS by a key that lies beside it",
    BlobFeature.TARFS: "is a plain tar file",
    BlobFeature.EXTERNAL: "is kept outside of the registry",
}


class BlobSet(ImageBlobs):
    """The :class:`~lamina.content.image_blobs.ImageBlobs` of a bootstrap.  Threads share it."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        files: MetadataFiles,
        fetcher: Fetcher,
        store: NodeStore,
        *,
        on_table: Callable[[str, str], None] | None = None,
        on_doubt: Callable[[str, str], None] | None = None,
        sealed: Mapping[str, SealedParts] | None = None,
        table_heads: Mapping[str, int] | None = None,
    ) -> None:
        """Open nothing yet.

        *on_table* is told (blob id, digest) when a chunk table that did not come with the image was
        fetched from its blob and kept in *store*, *on_doubt* the same when one contradicts all that
        comes of the blob.  *sealed* opens the blobs of a sealed image, by
        blob id; they share no chunks with others.  *table_heads* tells, by blob id, how many bytes
        of a chunk table that is fetched are needed before anything is read
        (:mod:`lamina.blob.split_table`).
        """
        self._bootstrap = bootstrap
        self._chunk_sets = files.chunk_sets
        self._fetcher = fetcher
        self._parallel = Parallel()
        self.tables = TableLoader(
            files.tables, self._fetcher, store, on_table=on_table, sealed=sealed, heads=table_heads
        )
        """Their chunk tables."""
        self._on_doubt = on_doubt
        self._store = store
        self._early: StartPages | None = None
        self._local: LocalChunks | None = None
        self._lock = threading.Lock()
        # One a blob: a table that is slow to come holds up nobody who reads another blob.
        self._opening = [threading.Lock() for _ in bootstrap.blobs]
        self._opened: list[LazyBlob | None] = [None] * len(bootstrap.blobs)
        self._closed = False
        self._keeper = PassKeeper(self._by_id)
        self._fetcher.sequential_reads.on_begin = self._keeper.begin
        self._fetcher.sequential_reads.open_spool = store.space.open_spool

    def __len__(self) -> int:
        return len(self._opened)

    @overload
    def __getitem__(self, index: int) -> LazyBlob: ...

    @overload
    def __getitem__(self, index: slice) -> list[LazyBlob]: ...

    def __getitem__(self, index: int | slice) -> LazyBlob | list[LazyBlob]:
        """Return a blob, opened; raises what its source raises if the chunk table is not here."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        found = self._opened[index]
        if found is not None:
            return found
        with self._opening[index]:
            found = self._opened[index]
            if found is None:
                found = self._opened[index] = self._open(self._bootstrap.blobs[index])
        return found

    @property
    def fetcher(self) -> Fetcher:
        """Where all blobs come from."""
        return self._fetcher

    @property
    def early(self) -> StartPages | None:
        """What comes ahead of the readers, see :meth:`expect`."""
        return self._early

    @property
    def opened(self) -> list[LazyBlob]:
        """The blobs that are open already."""
        return [blob for blob in self._opened if blob is not None]

    def at_hand(self, index: int) -> LazyBlob | None:
        """Return a blob if nothing has to be fetched and nobody waited for to open it."""
        found = self._opened[index]
        if found is not None or not self.tables.is_here(self._bootstrap.blobs[index]):
            return found
        opening = self._opening[index]
        if not opening.acquire(blocking=False):
            return None
        try:
            if self._opened[index] is None:
                self._opened[index] = self._open(self._bootstrap.blobs[index])
            return self._opened[index]
        finally:
            opening.release()

    def expect(self, pages: StartPages) -> None:
        """Let the blobs that are opened from now on have *pages* that come ahead."""
        self._early = pages

    def run_parallel(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call *work* for every item with the threads that fetch; raises what the first raises."""
        self._parallel.run(work, items)

    def close(self) -> None:
        """Close the blobs that were opened; may be called again."""
        # Readers and the keeper wait for passes, so these are ended first.
        self._fetcher.sequential_reads.close()
        with self._lock:
            self._closed = True
        self._keeper.close()
        # A helper that is still at work may want a blob, for which it takes the lock.
        self._parallel.close()
        for index, opening in enumerate(self._opening):
            with opening:
                blob, self._opened[index] = self._opened[index], None
                if blob is not None:
                    blob.close()
        with self._lock:
            if self._local is not None:
                self._local.close()

    def _by_id(self, blob_id: str) -> LazyBlob | None:
        entries = self._bootstrap.blobs
        found = next((entry for entry in entries if entry.blob_id == blob_id), None)
        return None if found is None else self[found.index]

    def _open(self, entry: BlobEntry) -> LazyBlob:
        if self._closed:
            raise UsageError("the image is closed")
        check_supported(entry)
        table, table_digest = self.tables.load(entry)
        chunk_set = self._chunk_sets[entry.blob_id]
        # All that decides which bytes are right and where they lie, see lamina.store.node.
        identity = f"{table_digest} {chunk_set} {entry.digester} {entry.uncompressed_size}"
        cache = self._store.blob(
            entry.blob_id,
            entry.uncompressed_size,
            entry.chunk_count,
            identity=identity.encode("ascii"),
            zones=lambda: zones_of(table),
        )
        return LazyBlob(
            table,
            self._bootstrap.chunk_digests(entry.index),
            self._fetcher,
            cache,
            parallel=self._parallel,
            local=self._local_chunks(),
            early=self._early,
            doubt=self._on_doubt and partial(self._on_doubt, entry.blob_id, table_digest),
        )

    def _local_chunks(self) -> LocalChunks | None:
        if self.tables.is_sealed:
            return None
        with self._lock:
            if self._local is None:
                self._local = self._store.local_chunks()
            return self._local


def zones_of(table: ChunkTable) -> list[tuple[int, int]]:
    """Cut a blob between pieces, about every :data:`ZONE_BYTES`: (first chunk, first byte)."""
    zones = [(0, 0)]
    step = max(ZONE_BYTES, table.uncompressed_size // MOST_ZONES)
    for probe in range(step, table.uncompressed_size, step):
        with suppress(FormatError):
            first = table.neighbours(table.chunks_in(probe, 1).start).start
            offset = table.chunk_extent(first)[0]
            if first > zones[-1][0] and offset > zones[-1][1]:
                zones.append((first, offset))
    return zones


def check_supported(entry: BlobEntry) -> None:
    """Raise UnsupportedError for a kind of blob whose pieces cannot be read."""
    for feature, what in UNSUPPORTED.items():
        if entry.features & feature:
            raise UnsupportedError(
                f"blob {entry.blob_id} {what}, which this version of Lamina cannot read",
                hint="convert the original image with `lamina convert`",
            )
