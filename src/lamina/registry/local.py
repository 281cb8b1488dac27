"""Reading images from local files: the half of a repository that layouts and archives share.

A local image is an index and blobs that are extents of files.  Writing is each format's own
business.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, Self

import msgspec

from lamina.errors import (
    FetchError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    os_hint,
)
from lamina.oci.manifest import (
    MAX_MANIFEST_BYTES,
    REF_NAME,
    Descriptor,
    ImageIndex,
    detect_media_type,
)
from lamina.oci.reference import Reference, is_digest
from lamina.registry import layout_entries
from lamina.registry.repository import Progress, Repository
from lamina.registry.verify import check_bytes, check_digest, verified

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Extent(NamedTuple):
    """Where the bytes of a blob are: a part of a file, or in memory (``data``)."""

    path: str
    offset: int
    size_bytes: int
    data: bytes | None = None


class LocalImages(Protocol):
    """What a local format tells of itself; one folder or one file."""

    def index(self) -> ImageIndex:
        """Return the images that are there, each a descriptor, tags in the ``ref.name``
        annotation.
        """

    def extent(self, digest: str) -> Extent | None:
        """Return where a blob is, None if it is not there."""

    def close(self) -> None:
        """Give back what is open."""


class LocalRepository:
    """The reading half of :class:`lamina.registry.repository.Repository` over local images."""

    def __init__(self, reference: Reference, images: LocalImages) -> None:
        self._reference = reference
        self._images = images

    @property
    def reference(self) -> Reference:
        """What it was opened with."""
        return self._reference

    def resolve(self, version: str | None = None) -> Descriptor:
        """Return the manifest or index of a tag or digest; None: the reference's own, else the only
        one there.

        Raises NotFoundError naming the tags there are, UsageError if there are several images and
        none is named.
        """
        wanted = version if version is not None else self._reference.version
        entries = self._images.index().manifests
        if wanted is None:
            return _unnamed(self._only(entries))
        for entry in sorted(entries, key=layout_entries.looks_attached):
            if wanted in (entry.digest, entry.annotations.get(REF_NAME)):
                return _unnamed(entry)
        if is_digest(wanted):
            data = self._manifest_bytes(wanted)
            check_digest(data, wanted, self._reference.path)
            return Descriptor(
                media_type=detect_media_type(data, f"manifest {wanted}"),
                digest=wanted,
                size=len(data),
            )
        saved = layout_entries.cosign_entry(entries, wanted)
        if saved is not None:
            return _unnamed(saved)
        raise NotFoundError(
            f"{self._reference.path} has no image {wanted!r}",
            hint=f"it has {_names(self._images_of(entries))}",
        )

    def manifest(
        self,
        which: Descriptor | str | None = None,
        *,
        timeout_s: float | None = None,  # noqa: ARG002
    ) -> tuple[Descriptor, bytes]:
        """Return a manifest or index with its bytes, length and digest verified."""
        descriptor = which if isinstance(which, Descriptor) else self.resolve(which)
        data = self._manifest_bytes(descriptor.digest)
        check_bytes(data, descriptor, self._reference.path)
        return descriptor, data

    def referrers(self, digest: str) -> Iterator[Descriptor]:
        """Yield the entries without a name that refer to a manifest."""
        yield from layout_entries.referrers(
            self._images.index().manifests, digest, self._manifest_bytes
        )

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Return a stream of a blob; its last read raises IntegrityError if length or digest are
        wrong.
        """
        raw = open_extent(self._extent(descriptor.digest))
        return verified(raw, descriptor, self._reference.path)

    def read_range(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """Return exactly these bytes of a blob, or FetchError."""
        extent = self._extent(digest)
        self._check_range(extent, digest, offset, size_bytes)
        data = read_extent(extent, offset, size_bytes)
        self._check_count(len(data), digest, offset, size_bytes)
        return data

    def read_into(
        self,
        digest: str,
        offset: int,
        buffer: memoryview,
        *,
        timeout_s: float | None = None,  # noqa: ARG002 - files do not keep anybody waiting
    ) -> None:
        """Fill a buffer with bytes of a blob, or FetchError."""
        extent, size_bytes = self._extent(digest), len(buffer)
        self._check_range(extent, digest, offset, size_bytes)
        self._check_count(_fill_extent(extent, offset, buffer), digest, offset, size_bytes)

    def _check_range(self, extent: Extent, digest: str, offset: int, size_bytes: int) -> None:
        if offset < 0 or size_bytes < 0 or offset + size_bytes > extent.size_bytes:
            raise FetchError(
                f"{self._reference.path}: blob {digest} has {extent.size_bytes} bytes, "
                f"none at {offset}+{size_bytes}"
            )

    def _check_count(self, count: int, digest: str, offset: int, size_bytes: int) -> None:
        if count != size_bytes:
            raise FetchError(
                f"{self._reference.path}: blob {digest} ends in the range {offset}+{size_bytes}"
            )

    def has_blob(self, digest: str, size_bytes: int) -> bool:
        """Tell whether a blob of this digest and size is there (by its file, not its bytes)."""
        extent = self._images.extent(digest)
        return extent is not None and extent.size_bytes == size_bytes

    def push_blob(
        self,
        descriptor: Descriptor,  # noqa: ARG002
        source: BinaryIO,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> None:
        """Refused: opened for reading."""
        raise self._read_only()

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:  # noqa: ARG002
        """Return False: files are not taken over."""
        return False

    def push_manifest(
        self,
        tag: str | None,  # noqa: ARG002
        media_type: str,  # noqa: ARG002
        data: bytes,  # noqa: ARG002
        *,
        digest: str | None = None,  # noqa: ARG002
    ) -> Descriptor:
        """Refused: opened for reading."""
        raise self._read_only()

    def close(self) -> None:
        """Close what is open; again does nothing."""
        self._images.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read_only(self) -> UnsupportedError:
        return UnsupportedError(f"{self._reference} is open for reading only")

    def _only(self, entries: tuple[Descriptor, ...]) -> Descriptor:
        entries = self._images_of(entries)
        if not entries:
            raise NotFoundError(f"{self._reference.path} has no image in it")
        if len({entry.digest for entry in entries}) > 1:
            transport, path = self._reference.transport, self._reference.path
            raise UsageError(
                f"{path} has several images",
                hint=f"write {transport}:{path}:TAG; it has {_names(entries)}",
            )
        return entries[0]

    def _images_of(self, entries: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
        return layout_entries.images(entries, self._manifest_bytes)

    def _extent(self, digest: str) -> Extent:
        extent = self._images.extent(digest)
        if extent is None:
            raise NotFoundError(f"{self._reference.path} has no blob {digest}")
        return extent

    def _manifest_bytes(self, digest: str) -> bytes:
        extent = self._extent(digest)
        if extent.size_bytes > MAX_MANIFEST_BYTES:
            raise FormatError(
                f"{self._reference.path}: the manifest {digest} has {extent.size_bytes} "
                f"bytes, more than {MAX_MANIFEST_BYTES}"
            )
        return read_extent(extent, 0, extent.size_bytes)


def _open(path: str, flags: int) -> int:
    # A pipe that somebody put into a folder keeps nobody waiting.
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


class _ExtentStream(io.RawIOBase):
    def __init__(self, extent: Extent) -> None:
        self._path = extent.path
        self._fd = _open(extent.path, os.O_RDONLY)
        self._position = extent.offset
        self._end = extent.offset + extent.size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")[: self._end - self._position]
        try:
            got = os.preadv(self._fd, [view], self._position) if len(view) else 0
        except OSError as error:
            raise _unreadable(self._path, error) from error
        self._position += got
        return got

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def open_extent(extent: Extent) -> BinaryIO:
    """Return a stream over the bytes of an extent; FetchError if its file cannot be opened."""
    if extent.data is not None:
        return io.BytesIO(extent.data)
    try:
        return _ExtentStream(extent)  # type: ignore[return-value]
    except OSError as error:
        raise FetchError(
            f"cannot open {extent.path}: {error.strerror}", hint=os_hint(error)
        ) from error


def read_extent(extent: Extent, offset: int, size_bytes: int) -> bytes:
    """Return a part of an extent, fewer bytes if its file is shorter; FetchError if it cannot be
    read.
    """
    buffer = bytearray(size_bytes)
    return bytes(memoryview(buffer)[: _fill_extent(extent, offset, memoryview(buffer))])


def _fill_extent(extent: Extent, offset: int, buffer: memoryview) -> int:
    if extent.data is not None:
        data = extent.data[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)
    try:
        fd = _open(extent.path, os.O_RDONLY)
        try:
            return os.preadv(fd, [buffer], extent.offset + offset)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(extent.path, error) from error


def read_small_file(path: str, limit_bytes: int) -> bytes:
    """Return a whole file of at most *limit_bytes*; NotFoundError, FetchError or FormatError
    else.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            data = file.read(limit_bytes + 1) or b""
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > limit_bytes:
        raise FormatError(f"{path} has more than {limit_bytes} bytes")
    return data


def _unreadable(path: str, error: OSError) -> FetchError:
    return FetchError(
        f"cannot read {path}: {error.strerror}",
        hint=os_hint(error) or "check this file, or copy the image anew",
    )


def _unnamed(entry: Descriptor) -> Descriptor:
    """Return the entry without its tag, which belongs to this place and not to the image."""
    kept = {key: value for key, value in entry.annotations.items() if key != REF_NAME}
    return msgspec.structs.replace(entry, annotations=kept)


def _names(images: tuple[Descriptor, ...]) -> str:
    tags = [entry.annotations.get(REF_NAME) or entry.digest for entry in images[:20]]
    return ", ".join(tags) or "no image"


def remove_quietly(path: str) -> None:
    """Unlink a file of our own that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
