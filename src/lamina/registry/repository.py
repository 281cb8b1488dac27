"""One interface over every place that keeps images: a registry, a layout folder, an archive."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol, Self

from lamina.oci.manifest import Descriptor
from lamina.oci.reference import Reference

Progress = Callable[[int], None]
"""Told the number of bytes of a blob that moved since the last call; negative when a transfer
starts over.
"""


class Repository(Protocol):
    """A place with blobs, manifests and tags.  Thread-safe; ``close`` is idempotent.

    All methods raise NotFoundError for what is not there, FetchError (AuthError) when the place
    does not deliver, IntegrityError when the bytes are not the promised ones, StoreError when a
    local place cannot be written.
    """

    @property
    def reference(self) -> Reference:
        """What it was opened with."""

    def resolve(self, version: str | None = None) -> Descriptor:
        """Return the manifest or index of a tag or digest; None means the reference's own."""

    def manifest(
        self, which: Descriptor | str | None = None, *, timeout_s: float | None = None
    ) -> tuple[Descriptor, bytes]:
        """Return a manifest or index with its bytes (≤ 4 MiB), digest verified, within
        *timeout_s* if it is given.
        """

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Return a stream of a blob; its last read raises IntegrityError if length or digest are
        wrong.
        """

    def read_into(
        self, digest: str, offset: int, buffer: memoryview, *, timeout_s: float | None = None
    ) -> None:
        """Fill a buffer with bytes of a blob, or FetchError, within *timeout_s* if it is given.
        They are not verified.  RangesIgnoredError if the place sends blobs only whole, for now or
        ever.
        """

    def read_range(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of a blob, as :meth:`read_into` gets them."""

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Tell whether a blob of this digest and size is there."""

    def push_blob(
        self, descriptor: Descriptor, source: BinaryIO, progress: Progress | None = None
    ) -> None:
        """Store a blob unless it is there; IntegrityError if the source is not what the descriptor
        says.
        """

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        """Take a blob over from another repository without moving its bytes; False if that is not
        possible.
        """

    def push_manifest(
        self, tag: str | None, media_type: str, data: bytes, *, digest: str | None = None
    ) -> Descriptor:
        """Store a manifest or index whose content is already there, and let the tag point to it.

        *digest* is the name that others know it by, if that is not its sha256.
        """

    def close(self) -> None:
        """Give back connections and files."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
