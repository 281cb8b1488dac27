"""The blobs of a repository as a source (:class:`lamina.source.blob_source.BlobSource`)."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from lamina.oci.manifest import Descriptor
from lamina.registry.repository import Repository
from lamina.source.blob_source import BlobSource, Cost
from lamina.source.health import Health


class Host(NamedTuple):
    """One of several that have the blobs of a repository, and how it has done lately."""

    repository: Repository
    name: str
    health: Health | None


@runtime_checkable
class HostList(Protocol):
    """A repository that has its blobs from several hosts."""

    @property
    def pulled_from(self) -> tuple[Host, ...]:
        """Who is asked for blobs, in their order.  Raises NotFoundError if nobody may be."""


def hosts_of(repository: Repository) -> tuple[Host, ...]:
    """Return who is asked for the blobs of a repository: each a source, since of one that lies the
    others are told apart.  Raises NotFoundError if nobody may be.
    """
    if isinstance(repository, HostList):
        return repository.pulled_from
    return (Host(repository, str(repository.reference), None),)


class RepositorySource(BlobSource):
    """Blobs of one OCI repository, where a blob's id is the hex of its digest."""

    def __init__(
        self, repository: Repository, name: str = "", health: Health | None = None
    ) -> None:
        """Read from *repository*, which stays the caller's."""
        self.name = name or str(repository.reference)
        self.health = health
        self.cost = Cost.NETWORK if repository.reference.is_remote else Cost.NODE
        self.can_stream = True
        self._repository = repository

    def read_into(self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float) -> None:
        """Fill *buffer*; raises FetchError naming the repository, or NotFoundError."""
        digest = f"sha256:{blob_id}"
        self._repository.read_into(digest, offset, buffer, timeout_s=timeout_s)

    def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:
        """Return a stream of a blob, with what :meth:`Repository.open_blob` does for it."""
        kind = "application/octet-stream"
        return self._repository.open_blob(
            Descriptor(media_type=kind, digest=f"sha256:{blob_id}", size=size_bytes)
        )
