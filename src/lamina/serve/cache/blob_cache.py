"""The cache: blobs of repositories, kept as they came, proven as far as that takes no key.

How the pieces of a sealed blob are proven is learned from the manifests that go by.  What a
manifest says of a blob counts for those only who ask for it in the repository of that manifest:
nobody can have a blob refused elsewhere by a manifest of his own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from lamina.blob.leaf_table import ENTRY
from lamina.errors import Error, FetchError, FormatError, NotFoundError, UnsupportedError
from lamina.oci.manifest import (
    INDEX_TYPES,
    SEALED_SUITE,
    Descriptor,
    Manifest,
    parse_image_manifest,
)
from lamina.opening.sealed import leaf_tables, public_blobs
from lamina.registry.verify import check_bytes
from lamina.serve.cache.allowance import Allowance
from lamina.serve.cache.bounded import Bounded
from lamina.serve.cache.cells import Cells, SealedPieces, cells_without_proof
from lamina.serve.cache.pool import Pool
from lamina.serve.cache.stored_blob import StoredBlob

if TYPE_CHECKING:
    from lamina.serve.cache.upstream import Found, Upstream, UpstreamRepository
    from lamina.store.node import NodeStore

LOG: Final = logging.getLogger("lamina")

MAX_OPEN_BLOBS: Final = 256
WAITING_BYTES: Final = 32 << 20
LEAST_WAITING_BYTES: Final = 128 << 10
"""What all, and each of many, readers have in memory that they have not taken yet."""
MAX_TABLE_MEMORY_BYTES: Final = 256 << 20
_TABLE_BYTES_PER_PIECE: Final = 128
MAX_PIECES: Final = 1 << 20
"""Of an image whose pieces are proven: more would take too much memory from the others."""
_MAX_REFUSED: Final = 1 << 12


class BlobCache:
    """Answers for the repositories of *upstream* from *store*, which both stay the caller's.
    Threads share it.
    """

    def __init__(self, upstream: Upstream, store: NodeStore) -> None:
        self.upstream = upstream
        self._store = store
        self._blobs: Pool[tuple[str, bytes], StoredBlob] = Pool(MAX_OPEN_BLOBS)
        self._sealed: Bounded[tuple[str, str], Cells] = Bounded(MAX_TABLE_MEMORY_BYTES)
        self._refused: Bounded[tuple[str, str], bool] = Bounded(_MAX_REFUSED)
        self._waiting = Allowance(WAITING_BYTES, LEAST_WAITING_BYTES)
        self._decoding = threading.Lock()

    def manifest(self, asked: UpstreamRepository, version: str) -> Found:
        """Return a manifest or index, its digest verified, and learn from it."""
        found = self.upstream.manifest(asked, version)
        key = asked.name, found.descriptor.digest
        if found.descriptor.media_type not in INDEX_TYPES and not self._refused.get(key):
            try:
                self._learn(asked, parse_image_manifest(found.data))
            except Error as error:
                if not isinstance(error, FetchError):
                    # Once: guests may ask for it as often as they like.
                    self._refused.put(key, True)
                LOG.warning("pieces in %s cannot be proven: %s", asked.name, error)
        return found

    @contextmanager
    def blob(self, asked: UpstreamRepository, digest: str) -> Iterator[StoredBlob]:
        """Give a blob that the repository has.  Raises NotFoundError, FetchError, StoreError."""
        algorithm, _, blob_id = digest.partition(":")
        if algorithm != "sha256":
            raise NotFoundError("this cache keeps blobs by SHA-256 only")
        cells = self._sealed.get((asked.name, digest)) or cells_without_proof(
            digest, self.upstream.size(asked, digest), asked.registry
        )
        key = digest, cells.identity

        def open_blob() -> StoredBlob:
            return StoredBlob(blob_id, cells, self._store, self._waiting)

        with self._blobs.using(key, open_blob) as found:
            yield found

    def _learn(self, asked: UpstreamRepository, manifest: Manifest) -> None:
        """Note how the pieces of a sealed image are proven."""
        if not manifest.layers or SEALED_SUITE not in manifest.layers[-1].annotations:
            return
        blobs = public_blobs(manifest)
        if all(self._sealed.get((asked.name, blob.descriptor.digest)) for blob in blobs):
            return
        if sum(blob.piece_count for blob in blobs) > MAX_PIECES:
            raise UnsupportedError(f"the image has more than {MAX_PIECES} pieces")
        data = self._whole(asked, manifest.layers[-2])
        with self._decoding:
            tables = leaf_tables(manifest, lambda _: data)
        for blob, table in zip(blobs, tables, strict=True):
            # What a manifest says of a size is no more than that.
            if self.upstream.size(asked, blob.descriptor.digest) == table.size_bytes:
                weight = table.piece_count * _TABLE_BYTES_PER_PIECE
                key = asked.name, blob.descriptor.digest
                self._sealed.put(key, SealedPieces(table, blob.root), weight)

    def _whole(self, asked: UpstreamRepository, layer: Descriptor) -> bytes:
        if layer.size > MAX_PIECES * ENTRY.size:
            raise FormatError(f"leaf tables of {layer.size} bytes")
        with self.blob(asked, layer.digest) as blob:
            if blob.size_bytes != layer.size:
                raise FormatError(f"the manifest says another size of {layer.digest}")
            data = b"".join(blob.read(0, blob.size_bytes, asked.source))
        check_bytes(data, layer, asked.name)
        return data

    def close(self) -> None:
        """Close the cache files."""
        self._blobs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
