"""What the client of the service does itself: it makes the mount, in its own mount namespace.

So no process of the service ever waits for a mount, which waits for the service.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from lamina.errors import Error, UnsupportedError, UsageError
from lamina.linux import fuse_device, mount
from lamina.linux.process import raise_file_limit, require_address_space
from lamina.linux.syscalls import SyscallError
from lamina.serve.detach import detach
from lamina.serve.device import fd_path
from lamina.serve.erofs_mount import create_erofs
from lamina.serve.fuse_tree import unprivileged_options
from lamina.serve.mount import DEVICES, mount_target
from lamina.serve.mount_options import mount_attributes
from lamina.serve.mounts import clear_mountpoint
from lamina.serve.readahead import shorten_readahead
from lamina.serve.service.channel import Channel
from lamina.serve.service.client import ServiceGoneError, connect_or_start, expect
from lamina.serve.service.fanotify_setup import set_up_group
from lamina.serve.service.spec import MountSpec
from lamina.serve.state import (
    MountRecord,
    MountRecords,
    claimed_mountpoint,
    mounting_lock,
)
from lamina.serve.whole_reads import NoKernelMountError, require_whole_reads

LOG: Final = logging.getLogger("lamina")

RETRY_DEADLINE_S: Final = 60.0
"""How long supervisors may die of a mount, or beside it, before it is given up."""


@dataclass(slots=True)
class _Job:
    """One attempt to mount; ``device_number`` is that of the mount once it has a place."""

    spec: MountSpec
    channel: Channel
    opened: dict[str, Any]
    attributes: int
    watch: tuple[str, ...] = ()
    device_number: str = ""

    def attach(self, mount_fd: int) -> None:
        """Give the mount its place."""
        number = mount.device_number(mount_fd)
        self.device_number = f"{os.major(number)}:{os.minor(number)}"
        mount.attach_mount(mount_fd, self.spec.mountpoint)

    def hand_over(self, device: str, fds: dict[str, int], connection: int = 0) -> None:
        """Let the service answer from now on; the descriptors stay the caller's."""
        said = self.channel.say(
            "serve", list(fds.values()), device=device, names=list(fds), connection=connection
        )
        if not said:
            raise ServiceGoneError("the mount service ended before it took a mount")
        expect(self.channel, "serving")


def mount_by_service(spec: MountSpec) -> MountRecord:
    """Mount an image that the service answers for, and return the record when it can be read.

    Needs one thread.  Raises UsageError, NotFoundError, KernelError, UnsupportedError, and what
    opening the image raises.
    """
    # The service has the limits of who starts it.
    raise_file_limit()
    require_address_space()
    mountpoint = os.path.realpath(spec.mountpoint)
    with claimed_mountpoint(mountpoint):
        # First, because a broken mount is no folder.
        clear_mountpoint(mountpoint)
        return _mount_on_cleared(spec)


def _mount_on_cleared(spec: MountSpec) -> MountRecord:
    spec = msgspec.structs.replace(spec, mountpoint=mount_target(spec.mountpoint))
    attributes = mount_attributes(spec.options)
    if spec.device not in DEVICES:
        raise UsageError(
            f"there is no device {spec.device!r}", hint=f"choose of {', '.join(DEVICES)}"
        )
    if os.geteuid() != 0 and spec.device not in ("auto", "fuse"):
        raise UnsupportedError(
            f"device {spec.device} needs root",
            hint="without root, --device fuse mounts the whole tree",
        )
    if spec.device != "auto":
        return _mount(spec, attributes)
    if os.geteuid() == 0:
        return _mount_best(spec, attributes)
    return _mount(msgspec.structs.replace(spec, device="fuse"), attributes)


def _mount_best(spec: MountSpec, attributes: int) -> MountRecord:
    # A service that nobody is connected to ends, and the second attempt would wait for another.
    with contextlib.closing(connect_or_start()):
        try:
            return _mount(msgspec.structs.replace(spec, device="fuse-blob"), attributes)
        except (SyscallError, NoKernelMountError) as error:
            # Only trying tells: file-backed mounts are a build option from Linux 6.12 on.
            LOG.info("no kernel mount (%s), so the whole tree is served by FUSE", error)
        return _mount(msgspec.structs.replace(spec, device="fuse"), attributes)


def _mount(spec: MountSpec, attributes: int) -> MountRecord:
    deadline = time.monotonic() + RETRY_DEADLINE_S
    while True:
        with contextlib.closing(connect_or_start()) as channel:
            try:
                return _attempt(spec, attributes, channel)
            except ServiceGoneError:
                if time.monotonic() > deadline:
                    raise


def _attempt(spec: MountSpec, attributes: int, channel: Channel) -> MountRecord:
    if not channel.say("open", spec=spec.to_json()):
        raise ServiceGoneError("the mount service ended before it took a request")
    job = _Job(spec, channel, expect(channel, "opened"), attributes)
    try:
        _make(job)
        return _commit(job)
    except BaseException:
        if job.device_number:
            with contextlib.suppress(Error):
                detach(spec.mountpoint, job.device_number, lazy=True)
        raise


def _make(job: _Job) -> None:
    makers = {"fuse": _mount_tree, "fuse-blob": _mount_fuse_blobs, "fanotify": _mount_watched}
    try:
        makers[job.spec.device](job)
    except SyscallError as error:
        if job.channel.gone:
            # The next supervisor has let go of a mount that was half made.
            raise ServiceGoneError("the mount service ended while an image was mounted") from error
        raise


def _commit(job: _Job) -> MountRecord:
    """Have the mount recorded, by the service if it has to serve it."""
    record = MountRecord(
        image=job.opened["image"],
        digest=job.opened["digest"],
        mountpoint=job.spec.mountpoint,
        device=job.spec.device,
        device_number=job.device_number,
        pid=0,
        start_ticks=0,
        store=job.spec.store,
        resident=job.spec.device != "fuse" and all(job.opened["complete"]),
    )
    fields = msgspec.structs.asdict(record)
    if record.resident:
        job.channel.say("held", watch=job.watch)
        expect(job.channel, "held")
        MountRecords().write(record)
        return record
    if not job.channel.say("mounted", record=fields, watch=job.watch):
        raise ServiceGoneError("the mount service ended before it knew of a mount")
    return MountRecord(**expect(job.channel, "record")["record"])


def _mount_tree(job: _Job) -> None:
    if os.geteuid() != 0:
        words = unprivileged_options(job.attributes)
        device = fuse_device.mount_unprivileged(job.spec.mountpoint, words)
        with _closing(device):
            entry = mount.topmost_mount(job.spec.mountpoint)
            job.device_number = entry.device if entry is not None else ""
            job.hand_over("fuse", {"device": device})
        return
    everyone: list[tuple[str, str | None]] = [("allow_other", None), ("default_permissions", None)]
    with _fuse_mount(job, everyone) as mount_fd:
        job.attach(mount_fd)


@contextlib.contextmanager
def _fuse_mount(job: _Job, options: list[tuple[str, str | None]]) -> Iterator[int]:
    """Yield a FUSE mount without a place that the service answers, and only the service."""
    device = fuse_device.open_device()
    with _closing(device):
        attributes = job.attributes if job.spec.device == "fuse" else mount.MOUNT_ATTR_RDONLY
        mount_fd = fuse_device.create_fuse_mount(device, options, attributes)
        try:
            number = mount.device_number(mount_fd)
            job.hand_over(job.spec.device, {"device": device}, number)
        except BaseException:
            os.close(mount_fd)
            raise
    with _closing(mount_fd):
        yield mount_fd


def _mount_fuse_blobs(job: _Job) -> None:
    blobs = zip(job.opened["blobs"], job.opened["complete"], strict=True)
    if all(job.opened["complete"]):
        _mount_erofs(job, job.opened["blobs"])
        return
    require_whole_reads(os.path.dirname(job.opened["blobs"][0]))
    with _fuse_mount(job, []) as mount_fd:
        paths = [
            path if complete else f"{fd_path(mount_fd)}/{index}"
            for index, (path, complete) in enumerate(blobs)
        ]
        _mount_erofs(job, paths, mount.device_number(mount_fd))


def _mount_watched(job: _Job) -> None:
    paths = job.opened["blobs"]
    lazy = [index for index, done in enumerate(job.opened["complete"]) if not done]
    if not lazy:
        _mount_erofs(job, paths)
        return
    with contextlib.ExitStack() as stack:
        fds = set_up_group({index: paths[index] for index in lazy}, stack)
        job.hand_over("fanotify", fds)
    _mount_erofs(job, paths)


def _mount_erofs(job: _Job, paths: list[str], connection: int = 0) -> None:
    with mounting_lock() as lock:
        if connection:
            lock.note_connection(connection)
        watch = mount.SuperblockWatch("erofs")
        mount_fd = create_erofs(job.opened["bootstrap"], paths, job.attributes)
        with _closing(mount_fd):
            job.attach(mount_fd)
        watch.mounted()
    job.watch = watch.paths
    if not all(job.opened["complete"]):
        shorten_readahead(watch.paths)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)
