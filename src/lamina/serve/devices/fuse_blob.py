"""Device ``fuse-blob``: the blobs are files of a FUSE mount that has no place in the tree.

It fails closed by itself: when the serving process dies, for whatever reason, the kernel ends the
connection and reads of what is not in the page cache fail with EIO.  The connection in turn ends
with the EROFS superblock, which holds the last files of it open.

Blobs that are complete when the mount is made are mounted from their cache files directly, which is
faster than FUSE passthrough and has no limit of stacking.  The others are opened for direct I/O:
the kernel then asks for exactly what the file system needs, and does not wait for what it reads
ahead.  Those of tiny files have a page cache of their own, in which the kernel reads ahead from one
file into the next, so that one question is for many of them (docs/adr/0030); not where pages of a
start come ahead, or reads are recorded, for it would ask for others.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from lamina.linux import mount
from lamina.linux.superblock import SuperblockWatch
from lamina.serve.device import Answering, Held, fd_path, read_exactly
from lamina.serve.fuse_mount import FuseMount, LazilyOpenedFilesystem
from lamina.serve.fuse_server import CACHE_S, Body, refuse
from lamina.serve.lower_metadata import OVERLAY_ATTRIBUTES
from lamina.serve.metadata_file import MetadataFile
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.wire import fuse, fuse_reply

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.erofs.layout import BlobEntry
    from lamina.image.served_blob import ReadableBlob, ServedBlob
    from lamina.serve.mount_job import MountJob
    from lamina.serve.service.spec import MountSpec

TINY_BYTES: Final = 8 << 10
"""The most that chunks of a blob of tiny files have on average, in whole pages."""

READAHEAD_BYTES: Final = 32 << 10
"""How far the kernel reads ahead in a cached blob, beyond what the file system reads ahead in a
file: 64 KiB are not faster to read, 16 KiB a quarter slower."""

_FIRST_NODE: Final = fuse.ROOT_ID + 1
_READ: Final = int(fuse.Opcode.READ)


class BlobFilesystem:
    """One directory; file ``3`` is the blob of index 3, and behind the last are the metadata.

    The kernel keeps what is read of those that are ``cached``, and reads ahead in them.
    """

    flags = fuse.InitFlag.ASYNC_DIO

    def __init__(self, blobs: Sequence[ReadableBlob], cached: Container[int] = ()) -> None:
        self._blobs = blobs
        self._cached = cached

    def quick(self, request: fuse.Request, scratch: memoryview, /) -> Body | None:
        """Return what is ready and in memory."""
        if request.opcode != _READ:
            return None
        _, offset, size = fuse.decode_read(request)
        index = request.nodeid - _FIRST_NODE
        if not 0 <= index < len(self._blobs) or size > len(scratch):
            return None
        view = scratch[:size]
        return view if self._blobs[index].read_cached(offset, view) else None

    def handle(self, request: fuse.Request, scratch: memoryview, /) -> Body:
        """Answer a request."""
        opcode = request.opcode
        if opcode == _READ:
            read = fuse.decode_read(request)
            blob = self._blob(request.nodeid)
            return read_exactly(blob, read.offset, scratch, read.size_bytes)
        if opcode == fuse.Opcode.LOOKUP:
            return self._lookup(fuse.decode_lookup(request))
        if opcode == fuse.Opcode.GETATTR:
            return fuse_reply.encode_attr(self._attributes(request.nodeid), CACHE_S)
        if opcode == fuse.Opcode.OPEN:
            return self._open(request.nodeid - _FIRST_NODE)
        if opcode == fuse.Opcode.RELEASE:
            return b""
        raise refuse(request)

    def _open(self, index: int) -> bytes:
        is_cached = index in self._cached
        kept = fuse.OpenFlag.KEEP_CACHE if is_cached else fuse.OpenFlag.DIRECT_IO
        return fuse_reply.encode_open(0, kept | fuse.OpenFlag.NOFLUSH)

    def forget(self, nodeid: int, lookups: int) -> None:
        """Nothing to do: nodes are the blobs."""

    def _blob(self, nodeid: int) -> ReadableBlob:
        index = nodeid - _FIRST_NODE
        if not 0 <= index < len(self._blobs):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._blobs[index]

    def _lookup(self, name: bytes) -> bytes:
        if not name.isdigit() or int(name) >= len(self._blobs):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        nodeid = int(name) + _FIRST_NODE
        return fuse_reply.encode_entry(nodeid, self._attributes(nodeid), CACHE_S)

    def _attributes(self, nodeid: int) -> fuse.Attributes:
        if nodeid == fuse.ROOT_ID:
            return fuse.Attributes(nodeid, 0, 0, (0, 0), 0o40500, 2, 0, 0, 0)
        size = self._blob(nodeid).size_bytes
        return fuse.Attributes(nodeid, size, -(-size // 512), (0, 0), 0o100400, 1, 0, 0, 0)


def make_filesystem(spec: MountSpec, image: LazyImage) -> BlobFilesystem:
    """Return what is served of an image for a mount."""
    hidden = OVERLAY_ATTRIBUTES if spec.as_lower else None
    files = [*image.blobs.readable, MetadataFile(image, hidden)]
    if not spec.readahead_kib or (image.start_pages and not image.start_pages.is_over):
        return BlobFilesystem(files)
    entries = image.bootstrap.blobs
    return BlobFilesystem(files, {each.index for each in entries if _is_of_tiny_files(each)})


def _is_of_tiny_files(blob: BlobEntry) -> bool:
    return blob.uncompressed_size <= TINY_BYTES * blob.chunk_count


class BlobMount(FuseMount):
    """The blobs of an image as files; those that are complete are the kernel's own to read."""

    def __init__(
        self, mount: MountHandover, image: LazilyOpenedImage, answering: Answering
    ) -> None:
        filesystem = LazilyOpenedFilesystem(
            image,
            "lower blobs" if mount.spec.as_lower else "blobs",
            BlobFilesystem.flags,
            partial(make_filesystem, mount.spec),
        )
        super().__init__(
            mount, image, filesystem, answering.threads, max_readahead_bytes=READAHEAD_BYTES
        )
        self._number = mount.number
        self._held: tuple[ServedBlob, ...] = ()

    def mounted(self, watch: SuperblockWatch) -> None:
        """Keep what the kernel reads by itself, as long as the superblock that it knows lives."""
        self._held = _hold_complete(self.image.get(), watch, self._number).blobs

    def close(self) -> None:
        """Wait for the end of the connection."""
        super().close()
        for blob in self._held:
            blob.end_hold()
        self._held = ()


class FuseBlob:
    """See the module."""

    name = "fuse-blob"
    rank = 1
    needs_root = True
    shares_images = True
    needs_metadata_file = False

    def require(self) -> None:
        """Nothing can be told before."""

    def hold(self, image: LazyImage, owner: str) -> Held:
        """Hold the complete blobs, also through the mount that is about to be made, whatever
        becomes of this process.
        """
        return _hold_complete(image, None, owner)

    def mount(self, job: MountJob) -> None:
        """Mount the blobs, from where they are complete and else through FUSE."""
        from lamina.serve.short_read_probe import require_no_short_reads

        opened = job.opened
        if all(opened.complete) and opened.bootstrap:
            job.mount_erofs(opened.blobs)
            return
        require_no_short_reads(os.path.dirname(opened.blobs[0]))
        with job.fuse_mount([], mount.MOUNT_ATTR_RDONLY) as (mount_fd, connection):
            paths = [
                path if complete else f"{fd_path(mount_fd)}/{index}"
                for index, (path, complete) in enumerate(
                    zip(opened.blobs, opened.complete, strict=True)
                )
            ]
            metadata = None if opened.bootstrap else f"{fd_path(mount_fd)}/{len(paths)}"
            job.mount_erofs(paths, connection, metadata)

    def serve(
        self, mount: MountHandover, image: LazilyOpenedImage, answering: Answering
    ) -> BlobMount:
        """Return what answers for the blobs."""
        return BlobMount(mount, image, answering)


def _hold_complete(image: LazyImage, watch: SuperblockWatch | None, owner: str) -> Held:
    if image.is_early:
        # None of them is the kernel's own to read.
        return Held((False,) * len(image.blobs), ())
    complete, held = [], []
    for blob in image.blobs:
        complete.append(blob.hold_if_complete())
        if complete[-1]:
            watch = watch or SuperblockWatch("erofs")
            blob.hold_through(watch, owner)
            held.append(blob)
    return Held(tuple(complete), tuple(held))


DEVICE: Final = FuseBlob()
