"""A layer content cache, mounted at a folder and answered by this process.

It fails closed.  When the process dies, whoever reads a layer that is mounted waits for the next
one at the same folder, or gets errors when none comes (:mod:`lamina.serve.content_cache.keeper`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from lamina.errors import UsageError
from lamina.linux import fuse_device, mount
from lamina.linux.mount_table import device_number, topmost_mount
from lamina.serve.content_cache.kept_device import KeptDevice, keep, take
from lamina.serve.content_cache.tree import CacheFilesystem
from lamina.serve.fuse_lanes import Lanes, share
from lamina.serve.fuse_server import THREADS, FuseServer

if TYPE_CHECKING:
    from lamina.serve.content_cache.tree import CacheTree

_ATTRIBUTES: Final = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
_OPTIONS: Final[list[tuple[str, str | None]]] = [
    ("allow_other", None),
    ("default_permissions", None),
]
_SOON_MS: Final = 1000
_SOURCE: Final = "lamina"
"""What mounts of ours have as theirs."""


class CacheMount:
    """The files of a tree at *folder*, whose disks stay the caller's."""

    def __init__(self, folder: str | os.PathLike[str], give_up_s: float | None = None) -> None:
        """Claim the folder, which is made if it is not there: what a server that is gone has left
        is taken over, or away.  What does not come is an error after *give_up_s*, or never.

        Raises what mounting would where that can be told: UsageError, KernelError,
        UnsupportedError.
        """
        from lamina.serve.short_read_probe import require_no_short_reads

        if os.geteuid() != 0:
            raise UsageError("only root can mount what containerd mounts from")
        self._folder = os.path.realpath(folder)
        self._give_up_s = give_up_s
        self._ended = threading.Event()
        self._server: FuseServer | None = None
        self._number = 0
        self._is_attached = False
        self._kept = self._claim()
        require_no_short_reads(os.path.dirname(self._folder))

    def _claim(self) -> KeptDevice | None:
        path = self._folder
        there = topmost_mount(path)
        if there is not None and there.source == _SOURCE:
            kept = take(path)
            if kept is not None:
                major, _, minor = there.device.partition(":")
                self._number = os.makedev(int(major), int(minor))
                return kept
            if _is_dead(path):
                mount.unmount(path, mount.UMOUNT_NOFOLLOW | mount.MNT_DETACH)
                there = topmost_mount(path)
        if there is not None:
            raise UsageError(f"something is mounted at {path} already")
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path} cannot be made: {error.strerror}") from error
        return None

    def start(self, tree: CacheTree) -> None:
        """Begin to answer, after mounting if nobody has.  Raises KernelError."""
        filesystem = CacheFilesystem(tree, self._ended, self._give_up_s)
        threads, of_image = share(tree.image_count, THREADS)
        lanes = Lanes(filesystem.lane_of, of_image, threads)
        if self._kept is not None:
            # A descriptor of its own: the server closes it.
            self._server = FuseServer(self._kept.fd, filesystem, lanes=lanes)
            self._is_attached = True
            if self._server.take_over():
                self._server.start()
                return
            self._server.abort(self._number)
            self._kept.release()
            self._detach()
        device = fuse_device.open_device()
        self._server = FuseServer(device, filesystem, lanes=lanes)
        mount_fd = fuse_device.create_fuse_mount(device, _OPTIONS, _ATTRIBUTES)
        try:
            self._number = device_number(mount_fd)
            self._kept = keep(self._folder, device)
            self._server.start()
            mount.attach_mount(mount_fd, self._folder)
            self._is_attached = True
        finally:
            os.close(mount_fd)

    def withdraw(self) -> bool:
        """Take the files out of the tree; return whether layers of them are still mounted."""
        self._detach()
        self._release()
        if self._server is None or not self._server.running:
            return False
        # The kernel ends the connection of what nobody has open, soon but not at once.
        poll = select.poll()
        poll.register(self._server.ended_fd, select.POLLIN)
        return not poll.poll(_SOON_MS)

    def _detach(self) -> None:
        if self._is_attached:
            self._is_attached = False
            mount.unmount(self._folder, mount.UMOUNT_NOFOLLOW | mount.MNT_DETACH)

    def _release(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Answer until nobody reads; after an exception readers get errors at once.

        What was taken over and not begun with is left to the next one.
        """
        if self._server is None:
            return
        self._detach()
        self._release()
        if kind is not None:
            self._abort()
        try:
            self._server.close()
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        self._ended.set()
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.abort(self._number)


def _is_dead(path: str) -> bool:
    """Tell whether a mount of ours has nobody any more who answers."""
    try:
        # The kernel keeps attributes, and asks for these every time.
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False
