"""Where the bytes of blobs come from.

A source makes one attempt and delivers exactly the bytes asked for, or raises FetchError or
NotFoundError; whether they are the right ones is not its business (every chunk is verified after it
was decoded).  Trying again and asking others is :mod:`lamina.fetch.fetcher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

from lamina.errors import FetchError

if TYPE_CHECKING:
    from lamina.registry.repository import Repository


class Source(Protocol):
    """A place that has blobs.  Threads share it.  A ``name`` attribute, if any, is for messages."""

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of the blob, or raise FetchError or NotFoundError."""


@runtime_checkable
class WholeSource(Protocol):
    """A source that can also send a blob from its begin to its end.

    One whose ``read_range`` raises RangesIgnoredError for a blob can do nothing else with it.
    """

    def open_whole(self, blob_id: str, size_bytes: int) -> BinaryIO:
        """Return a stream of a blob of *size_bytes*; raises FetchError or NotFoundError.

        Its last read raises IntegrityError if the blob is longer, or its digest another.
        """


@runtime_checkable
class TimedSource(Protocol):
    """A source that can be told how long it may take."""

    def read_range_within(
        self, blob_id: str, offset: int, size_bytes: int, timeout_s: float
    ) -> bytes:
        """Return these bytes, or raise FetchError after about *timeout_s* at the latest."""


def source_name(source: Source) -> str:
    """Return what to call *source* in a message."""
    return str(getattr(source, "name", type(source).__name__))


class RepositorySource:
    """Blobs of one OCI repository, where a blob's id is the hex of its digest."""

    def __init__(self, repository: Repository) -> None:
        """Read from *repository*, which stays the caller's."""
        self.name = str(repository.reference)
        self._repository = repository

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes; raises FetchError naming the repository, or NotFoundError."""
        return self._read(blob_id, offset, size_bytes, None)

    def read_range_within(
        self, blob_id: str, offset: int, size_bytes: int, timeout_s: float
    ) -> bytes:
        """The same within *timeout_s*."""
        return self._read(blob_id, offset, size_bytes, timeout_s)

    def open_whole(self, blob_id: str, size_bytes: int) -> BinaryIO:
        """Return a stream of a blob, with what :meth:`Repository.open_blob` does for it."""
        from lamina.registry.manifest import Descriptor

        digest = f"sha256:{blob_id}"
        kind = "application/octet-stream"
        return self._repository.open_blob(
            Descriptor(media_type=kind, digest=digest, size=size_bytes)
        )

    def _read(self, blob_id: str, offset: int, size_bytes: int, timeout_s: float | None) -> bytes:
        digest = f"sha256:{blob_id}"
        data = self._repository.read_range(digest, offset, size_bytes, timeout_s=timeout_s)
        return exactly(data, self.name, blob_id, offset, size_bytes)


def exactly(data: bytes, name: str, blob_id: str, offset: int, size_bytes: int) -> bytes:
    """Return *data* if it is as long as was asked for, else raise FetchError."""
    if len(data) != size_bytes:
        raise FetchError(
            f"{name} sent {len(data)} bytes of blob {blob_id} where {size_bytes} were asked for"
            f" at offset {offset}"
        )
    return data
