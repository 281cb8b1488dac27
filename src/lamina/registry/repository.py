"""One interface over every place that keeps images: a registry, a layout folder, an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, Self

from lamina.errors import FetchError, UsageError
from lamina.registry.manifest import Descriptor
from lamina.registry.reference import Reference

Progress = Callable[[int], None]
"""Told the number of bytes of a blob that moved since the last call; negative when a transfer
starts over.
"""


class RangesIgnoredError(FetchError):
    """A range was asked for, and all of a blob would come, much more than the range."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to talk to registries.  Local places ignore all of it.

    ``plain_http``: None lets loopback hosts fall back to HTTP, True asks for HTTP, False forbids
    it. ``timeout_s`` bounds connecting and every wait for bytes; ``deadline_s`` bounds one request
    with all its retries.
    """

    plain_http: bool | None = None
    ca_file: str | None = None
    verify_tls: bool = True
    authfile: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    deadline_s: float = 300.0
    attempts: int = 4
    connections: int = 8
    push_chunk_bytes: int = 16 << 20


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
        """The manifest or index of a tag or digest; None means the reference's own."""

    def manifest(self, which: Descriptor | str | None = None) -> tuple[Descriptor, bytes]:
        """A manifest or index with its bytes (≤ 4 MiB), digest verified."""

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """A stream of a blob; its last read raises IntegrityError if length or digest are wrong."""

    def read_range(
        self, digest: str, offset: int, size_bytes: int, *, timeout_s: float | None = None
    ) -> bytes:
        """Exactly these bytes of a blob, or FetchError, within ``timeout_s`` if it is given.  They
        are not verified.  RangesIgnoredError if the place sends blobs only whole, for now or ever.
        """

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Whether a blob of this digest and size is there."""

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

        ``digest`` is the name that others know it by, if that is not its sha256.
        """

    def close(self) -> None:
        """Give back connections and files."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


def open_repository(
    reference: Reference, *, write: bool = False, options: ClientOptions | None = None
) -> Repository:
    """Open the place that a reference names; nothing is fetched yet from a registry.

    With ``write`` a local place is created if it is not there, and a registry is asked for the
    right to push.  Raises NotFoundError for a path
    that is not there, FormatError for one that is no image, UsageError for a transport that cannot
    be written.
    """
    match reference.transport:
        case "docker":
            from lamina.registry.client import RegistryRepository

            return RegistryRepository(reference, options or ClientOptions(), write=write)
        case "oci":
            from lamina.registry.layout import LayoutRepository

            return LayoutRepository(reference, write=write)
        case "oci-archive":
            from lamina.registry.oci_archive import open_oci_archive

            return open_oci_archive(reference, write=write)
        case "docker-archive":
            from lamina.registry.docker_archive import open_docker_archive

            return open_docker_archive(reference, write=write)
        case _:
            raise UsageError(f"unknown transport {reference.transport!r}")
