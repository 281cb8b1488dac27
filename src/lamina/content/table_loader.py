"""The chunk tables of an image's blobs: from the store, else from where the blobs are."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from mmap import mmap
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.blob.layout import CI_HEADER_SIZE
from lamina.blob.leaf_table import LeafTable
from lamina.blob.seal_class import PieceOpener
from lamina.blob.sealed_table import SealedTable
from lamina.blob.split_table import SplitTable
from lamina.blob.table import MAX_TABLE_SIZE, ChunkTable
from lamina.content.window_frames import WindowFrames
from lamina.erofs.layout import BlobEntry, BlobFeature
from lamina.errors import FormatError
from lamina.source.fetcher import Fetcher
from lamina.source.request_sizing import choose_spans
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

LOG: Final = logging.getLogger("lamina")


class SealedParts(NamedTuple):
    """What opens the pieces of a sealed blob: the right leaves, and its key."""

    leaves: LeafTable
    seal: PieceOpener


class TableLoader:
    """Loads chunk tables, of any form that they have.  Threads share it."""

    def __init__(
        self,
        known: Mapping[str, str],
        fetcher: Fetcher,
        store: NodeStore,
        *,
        on_table: Callable[[str, str], None] | None = None,
        sealed: Mapping[str, SealedParts] | None = None,
        heads: Mapping[str, int] | None = None,
    ) -> None:
        """Load nothing yet.

        *known* has the digests of tables that came with the image, by blob id, and *on_table* is
        told (blob id, digest) of one that was fetched and kept in *store*; *sealed* opens the
        pieces of a sealed image.  *heads* tells how many bytes of a table that is fetched are
        needed before anything is read (:mod:`lamina.blob.split_table`).
        """
        self.heads = heads or {}
        self._known = dict(known)
        self._fetcher = fetcher
        self._store = store
        self._on_table = on_table
        self._sealed = sealed
        self._lock = threading.Lock()

    @property
    def is_sealed(self) -> bool:
        """Whether the image is sealed, so that its blobs share no chunks with others."""
        return self._sealed is not None

    def is_here(self, entry: BlobEntry) -> bool:
        """Tell whether the table of a blob is in the store."""
        digest = self._known.get(entry.blob_id)
        return digest is not None and self._store.metadata_path(digest) is not None

    def load(self, entry: BlobEntry) -> tuple[ChunkTable, str]:
        """Return the table of a blob, and its digest.

        Raises FormatError for one that is none, or that a sealed image lacks, and what fetching it
        raises.
        """
        digest = self._known.get(entry.blob_id)
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
        # Two that are told at one time would each remember all but the other's.
        with self._lock:
            self._known[entry.blob_id] = digest
            if self._on_table is not None:
                self._on_table(entry.blob_id, digest)
        return table, digest

    def _decoded(self, buffer: mmap, entry: BlobEntry) -> ChunkTable:
        if len(buffer) == self.heads.get(entry.blob_id):
            with buffer:
                return self._split(buffer[:], entry)
        if self._sealed is None:
            return ChunkTable.from_meta(buffer, entry)
        parts = self._sealed.get(entry.blob_id)
        if parts is None:
            raise FormatError(f"the sealed image does not describe its blob {entry.blob_id}")
        return SealedTable.open_sealed(buffer, entry, *parts)

    def _fetched(self, entry: BlobEntry) -> ChunkTable:
        holder = _holder(entry)
        head_size = self.heads.get(entry.blob_id)
        if head_size is not None:
            head_size = min(head_size, entry.ci_compressed_size)
            return self._fetched_by(self._split, holder, head_size, entry)
        size = entry.ci_compressed_size + CI_HEADER_SIZE
        return self._fetched_by(ChunkTable.from_stored, holder, size, entry)

    def _fetched_by(
        self,
        read: Callable[[memoryview, BlobEntry], ChunkTable],
        holder: str,
        size_bytes: int,
        entry: BlobEntry,
    ) -> ChunkTable:
        """Return the table that *read* finds in what comes; if it is none, another source may have
        it.
        """
        where = holder, entry.ci_offset, size_bytes
        deadline = time.monotonic() + self._fetcher.policy.deadline_s
        data, source = self._fetcher.fetch(*where, deadline=deadline)
        try:
            return read(data, entry)
        except FormatError as error:
            others = self._fetcher.refetch_elsewhere(*where, than=source, deadline=deadline)
            for data, other in others:
                with suppress(FormatError):
                    table = read(data, entry)
                    LOG.warning(
                        "%s sent a damaged table, %s the right: %s", source.name, other.name, error
                    )
                    return table
            raise

    def _split(self, head: Buffer, entry: BlobEntry) -> ChunkTable:
        def read(offset: int, size_bytes: int) -> bytes:
            # Windows are kept one by one, so that each must be free of the others.
            start = entry.ci_offset + offset
            return bytes(self._fetcher.read_range(_holder(entry), start, size_bytes))

        def ahead_bytes() -> int:
            return choose_spans(self._fetcher.estimate).ahead_bytes

        return SplitTable.open_head(head, entry, partial(WindowFrames, read, ahead_bytes))


def _holder(entry: BlobEntry) -> str:
    """Return the blob that has the chunk table: of an ordinary layer one of its own (RAFS v6
    §6.6).
    """
    separate = entry.features & BlobFeature.SEPARATE and any(entry.meta_digest)
    return entry.meta_digest.hex() if separate else entry.blob_id
