"""The blobs of an opened image, each opened when it is first read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from mmap import mmap
from typing import Final, NamedTuple, overload

from lamina.blob.layout import CI_HEADER_SIZE
from lamina.blob.leaf_table import LeafTable
from lamina.blob.seal_class import PieceOpener
from lamina.blob.sealed_table import SealedTable
from lamina.blob.split_table import SplitTable
from lamina.blob.table import MAX_TABLE_SIZE, ChunkTable
from lamina.erofs.layout import BlobEntry, BlobFeature
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, UnsupportedError, UsageError
from lamina.fetch.amplify import choose_spans
from lamina.fetch.fetcher import Fetcher, fetcher_of
from lamina.fetch.parallel import Parallel
from lamina.fetch.source import Source
from lamina.image.lazy_blob import LazyBlob
from lamina.image.metadata_layer import MetadataFiles
from lamina.image.pass_keeper import PassKeeper
from lamina.image.window_frames import WindowFrames
from lamina.store.local_chunks import LocalChunks
from lamina.store.node import NodeStore

ZONE_BYTES: Final = 1 << 20
"""About what is evicted at a time, unless that makes more than :data:`MOST_ZONES`."""

MOST_ZONES: Final = 256

UNSUPPORTED: Final = {
    BlobFeature.ENCRYPTED: "is encrypted with AES-XTS by a key that lies beside it",
    BlobFeature.TARFS: "is a plain tar file",
    BlobFeature.EXTERNAL: "is kept outside of the registry",
}


class SealedParts(NamedTuple):
    """What opens the pieces of a sealed blob: the right leaves, and its key."""

    leaves: LeafTable
    seal: PieceOpener


class BlobSet(Sequence[LazyBlob]):
    """The blobs in the order of the bootstrap's blob table.  Threads share it."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        files: MetadataFiles,
        source: Source,
        store: NodeStore,
        *,
        on_table: Callable[[str, str], None] | None = None,
        sealed: Mapping[str, SealedParts] | None = None,
        table_heads: Mapping[str, int] | None = None,
    ) -> None:
        """Open nothing yet.

        *on_table* is told (blob id, digest) when a chunk table that did not come with the image was
        fetched from its blob and kept in *store*.  *sealed* opens the blobs of a sealed image, by
        blob id; they share no chunks with others.  *table_heads* tells, by blob id, how many bytes
        of a chunk table that is fetched are needed before anything is read
        (:mod:`lamina.blob.split_table`).
        """
        self._bootstrap = bootstrap
        self._tables = dict(files.tables)
        self._chunk_sets = files.chunk_sets
        self.fetcher: Fetcher = fetcher_of(source)
        """Where all blobs come from."""
        self.parallel = Parallel()
        """The threads that fetch."""
        self._store = store
        self._on_table = on_table
        self._sealed = sealed
        self._table_heads = table_heads or {}
        self._local: LocalChunks | None = None
        self._lock = threading.Lock()
        self._opened: list[LazyBlob | None] = [None] * len(bootstrap.blobs)
        self._closed = False
        self._keeper = PassKeeper(self._by_id)
        self.fetcher.whole_reads.on_begin = self._keeper.begin
        self.fetcher.whole_reads.open_spool = store.space.open_spool

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
        with self._lock:
            found = self._opened[index]
            if found is None:
                found = self._opened[index] = self._open(self._bootstrap.blobs[index])
        return found

    @property
    def opened(self) -> list[LazyBlob]:
        """The blobs that are open already."""
        return [blob for blob in self._opened if blob is not None]

    def close(self) -> None:
        """Close the blobs that were opened; may be called again."""
        # Readers and the keeper wait for passes, so these are ended first.
        self.fetcher.whole_reads.close()
        with self._lock:
            self._closed = True
        self._keeper.close()
        # A helper that is still at work may want a blob, for which it takes the lock.
        self.parallel.close()
        with self._lock:
            for index, blob in enumerate(self._opened):
                if blob is not None:
                    blob.close()
                    self._opened[index] = None
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
        table, table_digest = self._table(entry)
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
        if self._local is None and self._sealed is None:
            self._local = self._store.local_chunks()
        return LazyBlob(
            table,
            self._bootstrap.chunk_digests(entry.index),
            self.fetcher,
            cache,
            parallel=self.parallel,
            local=self._local,
        )

    def _decoded(self, buffer: mmap, entry: BlobEntry) -> ChunkTable:
        if len(buffer) == self._table_heads.get(entry.blob_id):
            with buffer:
                return self._split(buffer[:], entry)
        if self._sealed is None:
            return ChunkTable.from_meta(buffer, entry)
        parts = self._sealed.get(entry.blob_id)
        if parts is None:
            raise FormatError(f"the sealed image does not describe its blob {entry.blob_id}")
        return SealedTable.open_sealed(buffer, entry, *parts)

    def _table(self, entry: BlobEntry) -> tuple[ChunkTable, str]:
        digest = self._tables.get(entry.blob_id)
        buffer = None if digest is None else self._store.map_metadata(digest)
        if digest is not None and buffer is not None:
            return self._decoded(buffer, entry), digest
        if self._sealed is not None:
            raise FormatError(f"the sealed image has no chunk table of its blob {entry.blob_id}")
        if entry.ci_compressed_size > MAX_TABLE_SIZE:
            raise FormatError(
                f"the chunk table of blob {entry.blob_id} claims {entry.ci_compressed_size} bytes"
            )
        table = self._fetched(entry)
        digest = self._store.put_metadata(table.to_meta())
        self._tables[entry.blob_id] = digest
        if self._on_table is not None:
            self._on_table(entry.blob_id, digest)
        return table, digest

    def _fetched(self, entry: BlobEntry) -> ChunkTable:
        holder = _holder(entry)
        head_size = self._table_heads.get(entry.blob_id)
        if head_size is not None:
            head_size = min(head_size, entry.ci_compressed_size)
            head = self.fetcher.read_range(holder, entry.ci_offset, head_size)
            return self._split(head, entry)
        size = entry.ci_compressed_size + CI_HEADER_SIZE
        stored = self.fetcher.read_range(holder, entry.ci_offset, size)
        return ChunkTable.from_stored(stored, entry)

    def _split(self, head: bytes, entry: BlobEntry) -> ChunkTable:
        def read(offset: int, size_bytes: int) -> bytes:
            return self.fetcher.read_range(_holder(entry), entry.ci_offset + offset, size_bytes)

        def ahead_bytes() -> int:
            return choose_spans(self.fetcher.link).ahead_bytes

        return SplitTable.open_head(head, entry, partial(WindowFrames, read, ahead_bytes))


def _holder(entry: BlobEntry) -> str:
    """The blob that has the chunk table: of an ordinary layer one of its own (RAFS v6 §6.6)."""
    separate = entry.features & BlobFeature.SEPARATE and any(entry.meta_digest)
    return entry.meta_digest.hex() if separate else entry.blob_id


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
                hint="Convert the original image with `lamina convert`.",
            )
