"""Where the documents of an image are read from, and where what was read of them is kept."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from lamina.errors import FetchError, NotFoundError
from lamina.oci.manifest import MAX_MANIFEST_BYTES, Descriptor
from lamina.opening.network_record import measured
from lamina.opening.node import Node, process_node
from lamina.registry.verify import COPY_BYTES, new_hash, verified

if TYPE_CHECKING:
    from lamina.oci.reference import Reference
    from lamina.registry.repository import Repository
    from lamina.source.folder_source import FolderSource
    from lamina.source.network_estimate import NetworkEstimator
    from lamina.store.node import NodeStore
    from lamina.trust.encryption.recipients import DecryptionKeys

LOG: Final = logging.getLogger("lamina")


@dataclass(frozen=True, slots=True)
class Place:
    """An image's repository and the node store: :class:`lamina.registry.resolve.Documents` that
    are asked for once.  What they raise it raises, and StoreError if nothing can be kept.
    """

    repository: Repository
    store: NodeStore
    node: Node = field(default_factory=process_node)
    folders: tuple[FolderSource, ...] = ()
    """Asked for what has a digest before the repository is."""
    keys: DecryptionKeys | None = None
    """What opens encrypted images of the repository."""
    _referrers: dict[str, tuple[Descriptor, ...]] = field(default_factory=dict, init=False)
    _listing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def reference(self) -> Reference:
        """What was asked for."""
        return self.repository.reference

    @property
    def estimator(self) -> NetworkEstimator:
        """Who is told how fast the repository is."""
        return self.node.estimator(self.store, self.reference)

    def named(self, version: Reference, timeout_s: float | None = None) -> tuple[str, bytes]:
        """Return the digest and the bytes of the manifest or index that a version is; what a tag
        means is asked for *timeout_s* at most, if that is given.
        """
        digest = version.digest
        if digest is None:
            # Whoever is asked what a tag means answers with the manifest.
            descriptor, data = self.repository.manifest(timeout_s=timeout_s)
            return self.store.put_metadata(data, descriptor.digest), data
        return digest, self._manifest(digest, digest)

    def manifest(self, descriptor: Descriptor) -> bytes:
        """Return a manifest or index, from the store or into it."""
        return self._manifest(descriptor.digest, descriptor)

    def _manifest(self, digest: str, which: Descriptor | str) -> bytes:
        data = self.store.metadata(digest)
        if data is None:
            with self._from_folder(digest, MAX_MANIFEST_BYTES) as file:
                data = self.repository.manifest(which)[1] if file is None else file.read()
            self.store.put_metadata(data, digest)
        return data

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Return what the repository lists as referring to a manifest, asked for once however many
        look for something in it.
        """
        from lamina.registry.referrers import list_referrers

        with self._listing:
            found = self._referrers.get(digest)
            if found is None:
                found = self._referrers[digest] = list_referrers(self.repository, digest)
            return found

    def blob(self, descriptor: Descriptor) -> bytes:
        """Return a blob whose size was found acceptable, from the store or into it."""
        data = self.store.metadata(descriptor.digest)
        if data is None:
            with self.stream(descriptor) as stream:
                data = stream.read()
            self.store.put_metadata(data, descriptor.digest)
        return data

    @contextmanager
    def stream(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """Yield the stream of a blob; what it takes from the repository tells of the link."""
        with self._from_folder(descriptor.digest, descriptor.size) as file:
            if file is not None:
                yield file
                return
        with (
            measured(self.estimator, descriptor.size),
            self.repository.open_blob(descriptor) as stream,
        ):
            yield stream

    @contextmanager
    def _from_folder(self, digest: str, limit_bytes: int) -> Iterator[BinaryIO | None]:
        """Open what a folder has, its digest verified; None if there is none of at most so many
        bytes.
        """
        for folder in self.folders:
            try:
                file = folder.open(digest)
            except (NotFoundError, FetchError) as error:
                LOG.debug("%s", error)
                continue
            with file:
                problem = _problem(file, digest, limit_bytes)
                if not problem:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(0)
                    promised = Descriptor(media_type="", digest=digest, size=size)
                    # It may change while it is read.
                    yield cast("BinaryIO", verified(file, promised, folder.name))
                    return
            LOG.warning("%s has a file %s that %s; it is passed over", folder.name, digest, problem)
        yield None


def _problem(file: BinaryIO, digest: str, limit_bytes: int) -> str:
    """Return what is wrong with a file, which is then at its begin; nothing if it is right."""
    hasher, left_bytes = new_hash(digest), limit_bytes
    try:
        while data := file.read(COPY_BYTES):
            left_bytes -= len(data)
            if left_bytes < 0:
                return f"has more than {limit_bytes} bytes"
            hasher.update(data)
        file.seek(0)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if hasher.hexdigest() == digest.partition(":")[2] else "has another digest"
