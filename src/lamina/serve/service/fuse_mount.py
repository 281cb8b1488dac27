"""A FUSE connection that this worker answers, and may have from another one."""

from __future__ import annotations

import os

from lamina.image.native import NativeImage
from lamina.linux.mount import SuperblockWatch
from lamina.serve.fuse_server import FuseServer
from lamina.serve.service.kept import KeptMount
from lamina.serve.service.late_image import LateFilesystem, LateImage


class FuseMount:
    """Serves ``mount``, whose descriptors stay the caller's; owns ``image``."""

    def __init__(self, mount: KeptMount, image: LateImage) -> None:
        self._mount = mount
        self.image = image
        # A descriptor of its own: the server closes it, and fork keeps the kept one's number.
        device = os.dup(mount.fds["device"])
        self._server = FuseServer(device, LateFilesystem(mount, image, acl=os.geteuid() == 0))

    def start(self, *, inherited: bool) -> bool:
        """Begin to answer; False if what the worker before has left cannot be answered."""
        if inherited and not self._server.take_over():
            if os.geteuid() == 0:
                self._server.abort(self._mount.connection)
            return False
        self._server.start()
        return True

    def mounted(self, watch: SuperblockWatch) -> None:
        """Keep what the kernel reads by itself, as long as the superblock that it knows lives."""
        if self._mount.device == "fuse-blob":
            hold_complete(self.image.get(), watch)

    def drain(self) -> None:
        """Begin nothing new."""
        self._server.drain()

    @property
    def busy(self) -> bool:
        """Whether something is being answered."""
        return self._server.busy

    @property
    def resident(self) -> bool:
        """Whether the mount needs no server any more: FUSE always needs one."""
        return False

    def leave_if_complete(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Wait for the end of the connection, and close the image."""
        self._server.close()
        self.image.close()


def hold_complete(image: NativeImage, watch: SuperblockWatch) -> list[bool]:
    """Hold the complete blobs, which the kernel reads by itself; return which ones they are.

    The hold lasts as long as the superblock of ``watch``, whatever becomes of this process.
    """
    held = []
    for blob in image.blobs:
        complete = blob.hold_if_complete()
        if complete:
            blob.hold_through(watch)
        held.append(complete)
    return held
