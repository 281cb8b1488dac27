"""A FUSE connection that this process answers, and may have from another one."""

from __future__ import annotations

import os
from collections.abc import Callable

from lamina.content.lazy_image import LazyImage
from lamina.linux.superblock import SuperblockWatch
from lamina.serve.fuse_server import Body, Filesystem, FuseServer
from lamina.serve.fuse_threads import MAX_READ_BYTES, FuseThreads
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.wire import fuse


class LazilyOpenedFilesystem:
    """What a connection shows of an image, which is opened when it is first asked for something."""

    def __init__(
        self,
        image: LazilyOpenedImage,
        kind: str,
        flags: fuse.InitFlag,
        make: Callable[[LazyImage], Filesystem],
    ) -> None:
        """Mounts of one image share what ``make`` returns for one ``kind``."""
        self.flags = flags
        self._image = image
        self._kind = kind
        self._make = make
        self._filesystem: Filesystem | None = None

    def handle(self, request: fuse.Request, scratch: memoryview, /) -> Body:
        """Answer a request; raises what opening the image raises."""
        filesystem = self._filesystem
        if filesystem is None:
            filesystem = self._filesystem = self._image.filesystem(self._kind, self._make)
        return filesystem.handle(request, scratch)

    def quick(self, request: fuse.Request, scratch: memoryview, /) -> Body | None:
        """Answer a request at once, if that can be and the image is open."""
        filesystem = self._filesystem
        return None if filesystem is None else filesystem.quick(request, scratch)

    def forget(self, nodeid: int, lookups: int) -> None:
        """Nothing to do: numbers of nodes are those of the image."""


class FuseMount:
    """Serves ``mount``, whose descriptors and image stay the caller's."""

    def __init__(
        self,
        mount: MountHandover,
        image: LazilyOpenedImage,
        filesystem: Filesystem,
        threads: FuseThreads | None = None,
        *,
        max_readahead_bytes: int = MAX_READ_BYTES,
    ) -> None:
        self.image = image
        self._connection = mount.connection
        # A descriptor of its own: the server closes it, and fork keeps the kept one's number.
        self._server = FuseServer(
            os.dup(mount.fds["device"]),
            filesystem,
            threads,
            max_readahead_bytes=max_readahead_bytes,
        )

    def start(self, *, inherited: bool) -> bool:
        """Begin to answer; False if what the worker before has left cannot be answered."""
        if inherited and not self._server.take_over():
            if os.geteuid() == 0:
                self._server.abort(self._connection)
            return False
        self._server.start()
        return True

    def mounted(self, watch: SuperblockWatch) -> None:
        """Nothing to do: the connection tells by itself that it is over."""

    def drain(self) -> None:
        """Begin nothing new."""
        self._server.drain()

    @property
    def busy(self) -> bool:
        """Whether something is being answered."""
        return self._server.busy

    def leave_if_complete(self) -> None:
        """Nothing to do: FUSE always needs a server."""

    def close(self) -> None:
        """Wait for the end of the connection."""
        self._server.close()
