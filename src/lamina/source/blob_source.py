"""Where the bytes of blobs come from.

A source makes one attempt and delivers exactly the bytes asked for, or raises FetchError or
NotFoundError; whether they are the right ones is not its business (every chunk is verified after it
was decoded).  Several behind the interface of one, asked again and instead of each other, are a
:class:`lamina.source.fetcher.Fetcher`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import BinaryIO, ClassVar, Protocol

from lamina.errors import FetchError
from lamina.source.health import Health


class Cost(IntEnum):
    """How far away a source is.  Nearer ones are asked first."""

    NODE = 0
    """On this node: no network."""
    NETWORK = 1
    """A registry or whatever else is asked through the network."""


class RangesIgnoredError(FetchError):
    """A range was asked for, and all of a blob would come, much more than the range."""

    final: ClassVar[bool] = True


class BlobSource(Protocol):
    """A place that has blobs, named by the hex digits of their digest.  Threads share it."""

    name: str
    """What it is called in messages."""

    cost: Cost

    health: Health | None = None
    """How it has done, where several share that; else each who asks it learns it anew."""

    can_stream: bool = False
    """Whether :meth:`open_sequential` is of use."""

    def read_into(self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float) -> None:
        """Fill *buffer* with the bytes of a blob from *offset* on, in about *timeout_s* at most.

        Raises FetchError or NotFoundError; then what is in the buffer means nothing.
        """

    def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:  # noqa: ARG002
        """Return a stream of a whole blob of *size_bytes*.

        Its last read raises IntegrityError if the blob is longer, or its digest another.  A source
        whose ``read_into`` raises RangesIgnoredError for a blob can do nothing else with it.
        Raises FetchError or NotFoundError.
        """
        raise FetchError(f"{self.name} does not send blob {blob_id} as a whole")


def require_length(count: int, name: str, blob_id: str, offset: int, size_bytes: int) -> None:
    """Raise FetchError unless so many bytes came as were asked for."""
    if count != size_bytes:
        raise FetchError(
            f"{name} sent {count} bytes of blob {blob_id} where {size_bytes} were asked for"
            f" at offset {offset}"
        )
