"""The seam between a kernel EROFS mount and what fills its blobs."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lamina.errors import StoreError


class BlobDevice(Protocol):
    """Makes every blob of an image a file that the kernel can mount.

    Life: :meth:`prepare`, then the mount is made in another process while :meth:`serve` answers,
    then :meth:`mounted`; in the end :meth:`close` or :meth:`abandon`.

    Whoever serves must never read through the mount it serves: with the process killed between
    question and answer, the kernel waits for a thread that waits for the kernel, and not even
    SIGKILL ends that.
    """

    name: str
    """``fanotify`` or ``fuse-blob``."""

    def prepare(self) -> Sequence[str]:
        """Return the path of each blob's file, in the order of the blobs.

        The paths hold in a fork of this process (``/proc/self/fd/N``).
        """

    def private_fds(self) -> Sequence[int]:
        """The descriptors that the mounting fork must close."""

    @property
    def connection(self) -> int:
        """``st_dev`` of the FUSE mount that has to be answered while mounting, 0 without one."""

    def serve(self) -> None:
        """Begin to answer; called after the fork, before the mount is complete."""

    def mounted(self) -> None:
        """The mount exists."""

    @property
    def ended_fd(self) -> int | None:
        """Readable when serving came to an end by itself; None if that cannot be."""

    @property
    def in_use(self) -> bool:
        """Whether a superblock may still read the blobs, in whatever mount namespace."""

    def abandon(self) -> None:
        """Stop serving while the superblock lives: its readers get EIO from now on."""

    def close(self) -> None:
        """Stop serving; the superblock is gone.  May be called again."""


def fd_path(fd: int) -> str:
    """Return the path by which a fork of this process reopens the file behind ``fd``."""
    return f"/proc/self/fd/{fd}"


class ReadableBlob(Protocol):
    """What is served of a blob."""

    @property
    def path(self) -> Path:
        """Its name in messages."""

    @property
    def size_bytes(self) -> int:
        """Its length."""

    def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill *buffer* from *offset* on, and return the count."""


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
