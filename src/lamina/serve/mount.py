"""Mounting an opened image that this process serves, and unmounting it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, KernelError, NotFoundError
from lamina.linux.process import raise_file_limit, start_time_ticks
from lamina.linux.superblock import SuperblockWatch
from lamina.linux.syscalls import SyscallError
from lamina.opening.request import OpenRequest
from lamina.serve.detach import detach, find_attached
from lamina.serve.device import Device, Held
from lamina.serve.devices import eligible_devices
from lamina.serve.mount_job import MountJob
from lamina.serve.mount_options import mount_attributes
from lamina.serve.own_process import OwnProcess
from lamina.serve.readahead import LAZY_KIB
from lamina.serve.service.describe import describe_image
from lamina.serve.service.spec import MountSpec
from lamina.serve.short_read_probe import NoKernelMountError

LOG: Final = logging.getLogger("lamina")

_LINGER_S: Final = 2.0
"""How long a superblock may take to go after its last mount has gone."""
_POLL_S: Final = 0.25


class Mount:
    """A mounted image that this process serves.  The image stays the caller's, and open."""

    def __init__(self, job: MountJob, host: OwnProcess, held: Held | None) -> None:
        """Take over what ``job`` has mounted, and what was held for it."""
        assert job.placed is not None
        self.record = job.record(os.getpid(), start_time_ticks(os.getpid()) or 0)
        """What ``lamina mounts`` tells, if it is written."""
        self._watch = SuperblockWatch.of(job.placed.watch)
        self._host = host
        self._held = [] if held is None else list(held.blobs)
        for blob in self._held:
            blob.hold_through(self._watch, host.number)
        host.mounted(self._watch)
        self._closed = False

    @property
    def mountpoint(self) -> str:
        """The folder, an absolute path."""
        return self.record.mountpoint

    @property
    def device(self) -> str:
        """The name of the device."""
        return self.record.device

    @property
    def attached(self) -> bool:
        """Whether it is still in this mount namespace."""
        return any(find_attached([self.record]))

    @property
    def _in_use(self) -> bool:
        return self._host.is_answering(self._watch)

    def wait(self, wake_fd: int | None = None) -> bool:
        """Wait until the mount and all its users are gone; return False if ``wake_fd`` is readable.

        Serving goes on meanwhile: after a lazy unmount, until the last file is closed.
        """
        ending_fd = self._host.ending_fd
        with open("/proc/self/mountinfo", "rb") as table, select.epoll() as poll:
            # The kernel reports a change of the mount table as an exceptional condition.
            poll.register(table.fileno(), select.EPOLLPRI | select.EPOLLERR)
            if wake_fd is not None:
                poll.register(wake_fd, select.EPOLLIN)
            if ending_fd is not None:
                poll.register(ending_fd, 0)
            while True:
                attached = self.attached
                if not attached and not self._in_use:
                    return True
                ready = [fd for fd, _ in poll.poll(None if attached else _POLL_S)]
                if wake_fd in ready:
                    return False
                if ending_fd in ready:
                    # The connection was aborted from outside; the mount may still be there.
                    poll.unregister(ending_fd)
                    ending_fd = None

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount, and stop serving when the last user has gone, which a busy mount waits for.

        Raises SyscallError (EBUSY) for a mount in use unless ``lazy``, which takes it out of the
        tree at once; serving then stops in :meth:`close`, or when :meth:`wait` has returned.
        """
        if self.attached:
            detach(self.mountpoint, self.record.device_number, lazy=lazy)
        deadline = time.monotonic() + _LINGER_S
        while self._in_use and not lazy and time.monotonic() < deadline:
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
        self._host.close(self._watch)
        while self._held and not self._watch.alive:
            blob = self._held.pop()
            blob.settle_hold(self._host.number)
            blob.end_hold()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def mount_image(
    image: LazyImage,
    mountpoint: str | os.PathLike[str],
    device: str = "auto",
    *,
    options: Sequence[str] = (),
    as_lower: bool = False,
    readahead_kib: int = LAZY_KIB,
) -> Mount:
    """Mount ``image`` read-only on an existing folder and serve it from threads of this process.

    ``device`` is a name of :mod:`lamina.serve.devices`; ``auto`` is ``fuse-blob`` for root where
    the kernel has file-backed EROFS mounts, else ``fuse``.  ``options`` are those of
    :mod:`lamina.serve.mount_options`; without ``suid`` and ``dev``, set-uid programs and device
    nodes do not work.  ``as_lower`` and ``readahead_kib`` are those of
    :class:`lamina.serve.service.spec.MountSpec`.

    The mount is not for this process itself, see :class:`lamina.serve.device.Device`.

    Raises UsageError, NotFoundError (no such folder), KernelError, UnsupportedError, and what
    opening the image's blobs raises.
    """
    request = OpenRequest(reference="" if image.origin is None else str(image.origin.reference))
    spec = MountSpec(
        image=request,
        mountpoint=os.fspath(mountpoint),
        device=device,
        options=tuple(options),
        as_lower=as_lower,
        readahead_kib=readahead_kib,
    )
    return mount_opened(image, spec)


def mount_opened(image: LazyImage, spec: MountSpec) -> Mount:
    """Mount an image as ``spec`` says; :func:`mount_image` tells the rest."""
    spec = msgspec.structs.replace(spec, mountpoint=mount_target(spec.mountpoint))
    attributes = mount_attributes(spec.options)
    raise_file_limit()
    *better, last = eligible_devices(spec.device)
    for each in better:
        try:
            return _mount(image, spec, attributes, each)
        except (KernelError, NoKernelMountError) as error:
            # Only trying tells: file-backed mounts are a build option from Linux 6.12 on.
            LOG.info("no kernel mount (%s), so the whole tree is served by FUSE", error)
    return _mount(image, spec, attributes, last)


def _mount(image: LazyImage, spec: MountSpec, attributes: int, device: Device) -> Mount:
    spec = msgspec.structs.replace(spec, device=device.name)
    host = OwnProcess(image, spec, device)
    opened, held = describe_image(image, spec, host.number)
    job = MountJob(spec, opened, attributes, host)
    try:
        device.mount(job)
        return Mount(job, host, held)
    except BaseException:
        with contextlib.suppress(Error):
            job.undo()
        host.close(SuperblockWatch.of(job.placed.watch if job.placed else ()))
        for blob in held.blobs if held is not None else ():
            blob.settle_hold(host.number)
            blob.end_hold()
        raise


def mount_target(mountpoint: str | os.PathLike[str]) -> str:
    """Return the real path of a folder to mount on.  Raises NotFoundError if it is none."""
    path = os.path.realpath(mountpoint)
    if not os.path.isdir(path):
        raise NotFoundError(f"{path} is not a folder to mount on", hint=f"mkdir -p {path}")
    return path
