"""Mounting an opened image in this process: choosing the device, serving, unmounting."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from lamina.erofs.hidden_attributes import without_attributes
from lamina.errors import KernelError, NotFoundError, UnsupportedError, UsageError
from lamina.image.native import NativeImage
from lamina.linux import mount
from lamina.linux.process import raise_file_limit
from lamina.linux.syscalls import SyscallError
from lamina.linux.unnamed_file import open_unnamed_file
from lamina.serve.detach import detach
from lamina.serve.device import BlobDevice, fd_path
from lamina.serve.erofs_mount import ErofsMount, mount_erofs
from lamina.serve.mount_options import mount_attributes
from lamina.serve.whole_reads import NoKernelMountError, require_whole_reads
from lamina.store.files import store_errors, write_all

LOG: Final = logging.getLogger("lamina")

DEVICES: Final = ("auto", "fanotify", "fuse-blob", "fuse")

OVERLAY_ATTRIBUTES: Final = b"trusted.overlay."
"""What overlayfs reads of a lower folder, unless it was mounted with ``userxattr``."""

_LINGER_S: Final = 2.0
"""How long a superblock may take to go after its last mount has gone."""
_POLL_S: Final = 0.25


class Server(Protocol):
    """What answers for a mount; see :class:`lamina.serve.device.BlobDevice`."""

    name: str

    @property
    def ended_fd(self) -> int | None:
        """Readable when serving came to an end by itself."""

    @property
    def in_use(self) -> bool:
        """Whether somebody may still read through it."""

    def abandon(self) -> None:
        """Stop serving; remaining readers get errors."""

    def close(self) -> None:
        """Stop serving."""


class Mount:
    """A mounted image that this process serves.  The image stays the caller's, and open."""

    def __init__(self, mountpoint: str, server: Server) -> None:
        self.mountpoint = mountpoint
        self._server = server
        self._closed = False
        entry = mount.topmost_mount(mountpoint)
        self.device_number = entry.device if entry is not None else ""
        """``st_dev`` of its files as ``major:minor``."""

    @property
    def device(self) -> str:
        """``fanotify``, ``fuse-blob`` or ``fuse``."""
        return self._server.name

    @property
    def attached(self) -> bool:
        """Whether it is still in this mount namespace."""
        return any(
            entry.device == self.device_number and entry.mountpoint == self.mountpoint
            for entry in mount.read_mount_table()
        )

    def wait(self, wake_fd: int | None = None) -> bool:
        """Wait until the mount and all its users are gone; return False if ``wake_fd`` is readable.

        Serving goes on meanwhile: after a lazy unmount, until the last file is closed.
        """
        ended_fd = self._server.ended_fd
        with open("/proc/self/mountinfo", "rb") as table, _poller(table.fileno()) as poll:
            for fd in (wake_fd, ended_fd):
                if fd is not None:
                    poll.register(fd, select.EPOLLIN)
            while True:
                attached = self.attached
                if not attached and not self._server.in_use:
                    return True
                ready = [fd for fd, _ in poll.poll(None if attached else _POLL_S)]
                if wake_fd in ready:
                    return False
                if ended_fd in ready:
                    # The connection was aborted from outside; the mount may still be there.
                    poll.unregister(ended_fd)
                    ended_fd = None

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount, and stop serving when the last user has gone, which a busy mount waits for.

        Raises SyscallError (EBUSY) for a mount in use unless ``lazy``, which takes it out of the
        tree at once; serving then stops in :meth:`close`, or when :meth:`wait` has returned.
        """
        if self.attached:
            detach(self.mountpoint, self.device_number, lazy=lazy)
        deadline = time.monotonic() + _LINGER_S
        while self._server.in_use and not lazy and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """Unmount, lazily if need be, and stop serving: who still reads gets EIO.

        May be called again.
        """
        if self._closed:
            return
        try:
            self.unmount()
        except SyscallError as error:
            if error.code != errno.EBUSY:
                raise
            LOG.warning("%s is still in use; its users get errors from now on", self.mountpoint)
            self.unmount(lazy=True)
        self._closed = True
        if self._server.in_use:
            self._server.abandon()
        else:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _poller(table_fd: int) -> select.epoll:
    poll = select.epoll()
    # The kernel reports a change of the mount table as an exceptional condition.
    poll.register(table_fd, select.EPOLLPRI | select.EPOLLERR)
    return poll


class _Wish(NamedTuple):
    """How an image is to be mounted; ``as_lower`` is for overlayfs, see :func:`mount_image`."""

    target: str
    attributes: int
    as_lower: bool


def mount_image(
    image: NativeImage,
    mountpoint: str | os.PathLike[str],
    device: str = "auto",
    *,
    options: Sequence[str] = (),
    as_lower: bool = False,
) -> Mount:
    """Mount ``image`` read-only on an existing folder and serve it from threads of this process.

    ``device`` is one of :data:`DEVICES`; ``auto`` is ``fuse-blob`` for root where the kernel has
    file-backed EROFS mounts, else ``fuse``.  ``options`` are those of
    :mod:`lamina.serve.mount_options`; without ``suid`` and ``dev``, set-uid programs and device
    nodes do not work.  With ``as_lower`` the mount is fit to be the lower folder of an overlay:
    it lacks the attributes by which overlayfs would take orders from the image.

    The mount is not for this process itself, see :class:`lamina.serve.device.BlobDevice`.

    Raises UsageError, NotFoundError (no such folder), KernelError, UnsupportedError, and what
    opening the image's blobs raises.
    """
    wish = _Wish(mount_target(mountpoint), mount_attributes(options), as_lower)
    raise_file_limit()
    if device == "auto":
        return _mount_best(image, wish)
    if device == "fuse":
        return _mount_tree(image, wish)
    if device not in DEVICES:
        raise UsageError(f"there is no device {device!r}", hint=f"choose of {', '.join(DEVICES)}")
    if os.geteuid() != 0:
        raise UnsupportedError(
            f"device {device} needs root", hint="without root, --device fuse mounts the whole tree"
        )
    return _mount_blobs(image, wish, device)


def mount_target(mountpoint: str | os.PathLike[str]) -> str:
    """Return the real path of a folder to mount on.  Raises NotFoundError if it is none."""
    path = os.path.realpath(mountpoint)
    if not os.path.isdir(path):
        raise NotFoundError(f"{path} is not a folder to mount on", hint=f"mkdir -p {path}")
    return path


def _mount_best(image: NativeImage, wish: _Wish) -> Mount:
    if os.geteuid() == 0:
        try:
            return _mount_blobs(image, wish, "fuse-blob")
        except (KernelError, NoKernelMountError) as error:
            # Only trying tells: file-backed mounts are a build option from Linux 6.12 on.
            LOG.info("no kernel mount (%s), so the whole tree is served by FUSE", error)
    return _mount_tree(image, wish)


def _mount_blobs(image: NativeImage, wish: _Wish, name: str) -> Mount:
    blobs = list(image.blobs)
    device: BlobDevice
    if name == "fanotify":
        from lamina.serve.fanotify import FanotifyDevice

        device = FanotifyDevice(blobs)
    else:
        from lamina.serve.fuse_blob import FuseBlobDevice

        device = FuseBlobDevice(blobs)
    lazy = not all(blob.complete for blob in blobs)
    try:
        if lazy and name == "fuse-blob":
            require_whole_reads(blobs[0].path.parent)
        with _bootstrap(image, wish) as path:
            mount_erofs(ErofsMount(path, wish.target, wish.attributes, lazy), device)
    except BaseException:
        device.close()
        raise
    return Mount(wish.target, device)


@contextlib.contextmanager
def _bootstrap(image: NativeImage, wish: _Wish) -> Iterator[str]:
    """The path of the metadata for the kernel, which keeps the file itself once it is mounted."""
    if wish.as_lower:
        changed = without_attributes(image.bootstrap, OVERLAY_ATTRIBUTES)
        if changed is not None:
            with contextlib.ExitStack() as stack:
                with store_errors("write the metadata of a container's image"):
                    folder = str(image.bootstrap_path.parent)
                    file = stack.enter_context(open_unnamed_file(folder))
                    # Whole, or not at all: the kernel takes what is missing for zeros.
                    write_all(file.fileno(), changed, 0)
                yield fd_path(file.fileno())
            return
    yield str(image.bootstrap_path)


def _mount_tree(image: NativeImage, wish: _Wish) -> Mount:
    from lamina.serve.fuse_tree import mount_tree

    hidden = OVERLAY_ATTRIBUTES if wish.as_lower else None
    try:
        return Mount(wish.target, mount_tree(image, wish.target, wish.attributes, hidden))
    except OSError as error:
        raise KernelError(f"cannot mount on {wish.target}: {error}") from error
