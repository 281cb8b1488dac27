"""The seam between a mount and what answers for it: what a device is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lamina.errors import StoreError

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.image.served_blob import ReadableBlob, ServedBlob
    from lamina.linux.superblock import SuperblockWatch
    from lamina.serve.fuse_threads import FuseThreads
    from lamina.serve.mount_job import MountJob
    from lamina.serve.service.handover import MountHandover
    from lamina.serve.service.lazy_open import LazilyOpenedImage


class Held(NamedTuple):
    """The blobs that a device wants as files.

    ``complete`` says of each blob of the image whether the kernel can read it by itself; ``blobs``
    are those that are held, which whoever asked for it ends by ``end_hold``.
    """

    complete: tuple[bool, ...]
    blobs: tuple[ServedBlob, ...]


class Answering(NamedTuple):
    """What a process that answers has for all its mounts: ``threads`` for FUSE, None if each
    connection is to have its own; whom to call with the number of a mount that needs nobody any
    more; and whether nothing runs in the process that may read through its mounts.
    """

    threads: FuseThreads | None
    on_resident: Callable[[str], None]
    is_apart: bool


class Device(Protocol):
    """A way in which programs see an image.

    It has two halves, for who mounts has a mount namespace, and who answers has descriptors:
    :meth:`hold` and :meth:`serve` are called where images are open, :meth:`mount` where the mount
    is to be.  Whoever serves must never read through the mount it serves, nor make it: with the
    process killed between question and answer, the kernel waits for a thread that waits for the
    kernel, and not even SIGKILL ends that.
    """

    @property
    def name(self) -> str:
        """The name of its module in :mod:`lamina.serve.devices`, with hyphens."""

    @property
    def rank(self) -> int | None:
        """Its place among those that ``auto`` tries, lowest first; None if it must be named."""

    @property
    def needs_root(self) -> bool:
        """Whether only root can use it."""

    @property
    def shares_images(self) -> bool:
        """Whether mounts of one image may share its open blobs."""

    @property
    def needs_metadata_file(self) -> bool:
        """Whether the metadata must be a file of the store before anything is mounted."""

    def require(self) -> None:
        """Raise what mounting would, where that can be told before anything is fetched."""

    def hold(self, image: LazyImage, owner: str) -> Held | None:
        """Hold what the kernel is to read by itself, for the mount of number ``owner``; None if it
        reads no blob.  Raises StoreError.
        """

    def mount(self, job: MountJob) -> None:
        """Make the mount.  Raises KernelError, UnsupportedError."""

    def serve(
        self, mount: MountHandover, image: LazilyOpenedImage, answering: Answering
    ) -> ServedMount:
        """Return what answers for a mount, whose descriptors and image stay the caller's."""


class ServedMount(Protocol):
    """What a process does for a mount."""

    image: LazilyOpenedImage

    def start(self, *, inherited: bool) -> bool:
        """Begin; ``inherited`` if another process has served it before.  False if what that one has
        left cannot be answered.  Raises KernelError.
        """

    def mounted(self, watch: SuperblockWatch) -> None:
        """Take note that the superblock is there."""

    def drain(self) -> None:
        """Begin nothing new."""

    @property
    def busy(self) -> bool:
        """Whether something is being answered."""

    def leave_if_complete(self) -> None:
        """Find out whether no server is needed any more."""

    def close(self) -> None:
        """Stop: the mount is gone, or needs nobody."""


def fd_path(fd: int) -> str:
    """Return the path by which a fork of this process reopens the file behind ``fd``."""
    return f"/proc/self/fd/{fd}"


def read_exactly(
    blob: ReadableBlob, offset: int, scratch: memoryview, size_bytes: int
) -> memoryview:
    """Return ready bytes of the blob, cut only at its end.

    The kernel takes a short answer for zeros, so a cache file that was cut off is an error.
    Raises what reading the blob does, StoreError, and OSError (EINVAL) for a read larger
    than ``scratch``.
    """
    size_bytes = max(0, min(size_bytes, blob.size_bytes - offset))
    if size_bytes > len(scratch):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    view = scratch[:size_bytes]
    if blob.read_into(offset, view) != size_bytes:
        raise StoreError(f"the cache file {blob.path} is shorter than its blob")
    return view
