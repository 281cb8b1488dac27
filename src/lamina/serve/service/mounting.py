"""What the client of the service does itself: it makes the mount, in its own mount namespace.

So no process of the service ever waits for a mount, which waits for the service.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from lamina.errors import Error, KernelError
from lamina.linux.process import raise_file_limit, require_address_space
from lamina.linux.syscalls import SyscallError
from lamina.serve.device import Device
from lamina.serve.devices import eligible_devices
from lamina.serve.mount import mount_target
from lamina.serve.mount_job import MountJob, Placed
from lamina.serve.mount_options import mount_attributes
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.mounting_lock import claimed
from lamina.serve.mounts import clear_mountpoint
from lamina.serve.service.channel import Channel
from lamina.serve.service.client import ServiceGoneError, connect_or_start, expect, request
from lamina.serve.service.messages import (
    Held,
    Hold,
    Mounted,
    Open,
    Opened,
    Recorded,
    ServeMount,
    Serving,
)
from lamina.serve.service.spec import MountSpec
from lamina.serve.sharing import note_sharable, place_beside, sharing_key
from lamina.serve.short_read_probe import NoKernelMountError

if TYPE_CHECKING:
    from lamina.opening.open_image import Indexer

LOG: Final = logging.getLogger("lamina")

RETRY_DEADLINE_S: Final = 60.0
"""How long supervisors may die of a mount, or beside it, before it is given up."""


class _NotSharedError(KernelError):
    """The service does not take a mount that shares a superblock: make another one."""


class _Service:
    """The mount service, as who answers for a mount."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel = channel
        self._device = device

    def hand_over(self, fds: dict[str, int], connection: int) -> None:
        """Let the service answer from now on."""
        message = ServeMount(device=self._device, names=tuple(fds), connection=connection)
        request(self._channel, message, list(fds.values()))
        expect(self._channel, Serving)

    def place(self, make: Callable[[], Placed]) -> Placed:
        """Mount here: the service answers."""
        return make()


def mount_by_service(spec: MountSpec, indexer: Indexer | None = None) -> MountRecord:
    """Mount an image that the service answers for, and return the record when it can be read.

    An image that is to be indexed is indexed here, because the service does not.  Needs one thread.
    Raises UsageError, NotFoundError, KernelError, UnsupportedError, and what opening the image
    raises.
    """
    return _mount_by_service(spec, indexer, ())[0]


def mount_for_container(spec: MountSpec, start_pipe: int, indexer: Indexer | None = None) -> Opened:
    """Mount an image as :func:`mount_by_service` does, and return what is known of it.

    What of the start arrives is told to *start_pipe*, unless that is below 0
    (:func:`lamina.serve.toucher.follow_start`); it stays the caller's.
    """
    return _mount_by_service(spec, indexer, () if start_pipe < 0 else (start_pipe,))[1]


def _mount_by_service(
    spec: MountSpec, indexer: Indexer | None, start_pipe: Sequence[int]
) -> tuple[MountRecord, Opened]:
    # The service has the limits of who starts it.
    raise_file_limit()
    require_address_space()
    mountpoint = os.path.realpath(spec.mountpoint)
    devices = eligible_devices(spec.device)
    if len(devices) == 1:
        # Before anything is opened, fetched or mounted in vain.
        devices[0].require()
    with claimed(mountpoint):
        # First, because a broken mount is no folder.
        clear_mountpoint(mountpoint)
        spec = msgspec.structs.replace(spec, mountpoint=mount_target(spec.mountpoint))
        attributes = mount_attributes(spec.options)
        return _mount_on_cleared(spec.indexed_by(indexer), attributes, devices, start_pipe)


def _mount_on_cleared(
    spec: MountSpec, attributes: int, devices: list[Device], start_pipe: Sequence[int]
) -> tuple[MountRecord, Opened]:
    *better, last = devices
    with contextlib.ExitStack() as stack:
        if better:
            # A service that nobody is connected to ends, and the second attempt would wait for
            # another.
            stack.enter_context(contextlib.closing(connect_or_start()))
        for device in better:
            try:
                return _mount(spec, attributes, device, start_pipe)
            except (SyscallError, NoKernelMountError) as error:
                # Only trying tells: file-backed mounts are a build option from Linux 6.12 on.
                LOG.info("no kernel mount (%s), so the whole tree is served by FUSE", error)
        return _mount(spec, attributes, last, start_pipe)


def _mount(
    spec: MountSpec, attributes: int, device: Device, start_pipe: Sequence[int]
) -> tuple[MountRecord, Opened]:
    spec = msgspec.structs.replace(spec, device=device.name)
    deadline = time.monotonic() + RETRY_DEADLINE_S
    share = True
    while True:
        with contextlib.closing(connect_or_start()) as channel:
            try:
                request(channel, Open(spec=spec), start_pipe)
                opened = expect(channel, Opened)
                job = MountJob(spec, opened, attributes, _Service(channel, device.name))
                return _attempt(job, device, channel, share=share), opened
            except _NotSharedError:
                share = False
            except ServiceGoneError:
                if time.monotonic() > deadline:
                    raise


def _attempt(job: MountJob, device: Device, channel: Channel, *, share: bool) -> MountRecord:
    if job.opened.note is not None:
        LOG.warning("%s", job.opened.note)
    try:
        # Who comes at the same time waits, and shares what this one makes.
        with claimed(sharing_key(job)) if share else contextlib.nullcontext():
            for first in place_beside(job) if share else ():
                return _commit_further(job, channel, first)
            _make(job, device, channel)
            return _commit(job, channel)
    except BaseException:
        with contextlib.suppress(Error):
            job.undo()
        raise


def _commit_further(job: MountJob, channel: Channel, first: MountRecord) -> MountRecord:
    """Have a mount recorded that shares the superblock of the first."""
    if first.resident:
        return _commit(job, channel)
    assert job.placed is not None
    request(channel, Mounted(record=_record(job), watch=job.placed.watch, shares=True))
    try:
        record = expect(channel, Recorded).record
    except ServiceGoneError:
        raise
    except KernelError as error:
        raise _NotSharedError(str(error)) from error
    note_sharable(record)
    return record


def _record(job: MountJob) -> MountRecord:
    return msgspec.structs.replace(job.record(), sharing=sharing_key(job))


def _make(job: MountJob, device: Device, channel: Channel) -> None:
    try:
        device.mount(job)
    except SyscallError as error:
        if channel.gone:
            # The next supervisor has let go of a mount that was half made.
            raise ServiceGoneError("the mount service ended while an image was mounted") from error
        raise


def _commit(job: MountJob, channel: Channel) -> MountRecord:
    """Have the mount recorded, by the service if it has to serve it."""
    placed = job.placed
    assert placed is not None
    if job.handed_over:
        request(channel, Mounted(record=_record(job), watch=placed.watch))
        record = expect(channel, Recorded).record
        note_sharable(record)
        return record
    request(channel, Hold(watch=placed.watch))
    expect(channel, Held)
    record = msgspec.structs.replace(_record(job), resident=True)
    MountRecords().write(record)
    note_sharable(record)
    return record
