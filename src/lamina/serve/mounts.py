"""What is mounted, and unmounting it: ``lamina mounts`` and ``lamina umount``."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from lamina.errors import NotFoundError, UsageError
from lamina.linux.mount_table import read_mount_table
from lamina.serve.detach import detach, find_attached
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.service.client import ServiceStatus, service_status
from lamina.serve.service.messages import Cost

LOG: Final = logging.getLogger("lamina")

_POLL_S: Final = 0.01
_MOST_LOOKS: Final = 8
_SERVER_END_S: Final = 5.0
"""How long a server may take to end after its mount is gone."""


class MountState(StrEnum):
    """How a mount is."""

    SERVED = "served"
    BROKEN = "broken"
    """Whoever served it is gone; what the page cache has not got fails with an error, or on device
    fanotify is zeros.  Mounting anew on the same folder mends it.
    """
    RESIDENT = "resident"
    """Every chunk is here and the kernel reads it by itself: no process is needed."""
    DETACHED = "detached"
    """Unmounted lazily; the server waits for the last user."""


class MountStatus(NamedTuple):
    """A record, and how the mount is now.

    ``pids`` by role, of those that there are: ``holder``, ``supervisor`` and ``worker`` of the
    service, or ``server``.  Sizes are those of the blobs, decompressed; None if nobody can tell.
    ``options`` are what the kernel has for the mount now; none for one that is detached.  ``cost``
    is what the worker of the service spent on the image since it has it.
    """

    record: MountRecord
    state: MountState
    pids: dict[str, int]
    ready_bytes: int | None = None
    total_bytes: int | None = None
    options: tuple[str, ...] = ()
    cost: Cost | None = None

    @property
    def resident(self) -> bool:
        """Whether the mount needs no process."""
        return self.state is MountState.RESIDENT


def list_mounts(mountpoint: str | None = None) -> list[MountStatus]:
    """Return this user's mounts, sorted by mountpoint, or the one of a folder; stale records are
    removed.

    Raises KernelError if there is a mount service that does not answer.
    """
    records = MountRecords()
    looked: dict[str, MountRecord] = {}
    found: dict[str, MountStatus] = {}
    current = _records(records, mountpoint)
    for _ in range(_MOST_LOOKS):
        # What a record says holds if it is the same before and after the look: it may change hands
        # meanwhile, from one mount to another or from the service to nobody.
        left = [record for record in current if looked.get(record.mountpoint) != record]
        if not left:
            break
        looked |= {record.mountpoint: record for record in left}
        found |= _look(records, left, every=len(left) == len(current) and mountpoint is None)
        current = _records(records, mountpoint)
    settled = [found.get(record.mountpoint) for record in current]
    return [
        each
        for each, record in zip(settled, current, strict=True)
        if each and each.record == record
    ]


def is_broken(mountpoint: str) -> bool:
    """Tell whether nobody answers any more for what is mounted on a folder.

    That the service answers for it needs no look at the mount table, which is long where there are
    containers.  Raises KernelError if there is a mount service that does not answer.
    """
    record = MountRecords().read(mountpoint)
    if record is not None and record.service:
        status = service_status([mountpoint])
        if status is not None and mountpoint in status.mounts:
            return False
    return any(each.state is MountState.BROKEN for each in list_mounts(mountpoint))


def _look(records: MountRecords, left: list[MountRecord], *, every: bool) -> dict[str, MountStatus]:
    """Return how those mounts are by folder, and remove the records of what is gone; they are
    ``every`` mount that there is.
    """
    named = None if every else [record.mountpoint for record in left]
    status = service_status(named) if any(record.service for record in left) else None
    attached = {record.mountpoint for record in find_attached(left)}
    table = {(entry.mountpoint, entry.device): entry.options for entry in read_mount_table()}
    found = {}
    for record in left:
        mount = _status_of(record, status, attached=record.mountpoint in attached)
        if mount is None:
            records.remove(record)
            continue
        options = table.get((record.mountpoint, record.device_number))
        found[record.mountpoint] = mount._replace(
            options=tuple(options.split(",")) if options else ()
        )
    return found


def _records(records: MountRecords, mountpoint: str | None) -> list[MountRecord]:
    if mountpoint is None:
        return records.all()
    record = records.read(mountpoint)
    return [] if record is None else [record]


def _status_of(
    record: MountRecord, status: ServiceStatus | None, *, attached: bool
) -> MountStatus | None:
    lives = MountState.SERVED if attached else MountState.DETACHED
    if record.service and status is not None:
        known = status.mounts.get(record.mountpoint)
        if known is not None:
            sizes = known.ready_bytes, known.total_bytes
            return MountStatus(record, lives, status.pids, *sizes, cost=known.cost)
    elif record.served:
        return MountStatus(record, lives, {"server": record.pid})
    if not attached:
        return None
    return MountStatus(record, MountState.RESIDENT if record.resident else MountState.BROKEN, {})


def clear_mountpoint(mountpoint: str) -> None:
    """Make room for a mount: one that is broken is taken away, lazily.

    Raises UsageError if an image is mounted there, and well.
    """
    for status in list_mounts(mountpoint):
        if status.state is MountState.DETACHED:
            continue
        if status.state is MountState.BROKEN:
            LOG.warning("%s is broken, and mounted anew", mountpoint)
            with contextlib.suppress(NotFoundError):
                unmount(mountpoint, lazy=True)
            continue
        raise UsageError(
            f"{status.record.image} is mounted at {mountpoint} already",
            hint=f"lamina umount {mountpoint}",
        )


def unmount(mountpoint: str | os.PathLike[str], *, lazy: bool = False) -> MountRecord:
    """Unmount what ``lamina mount`` mounted, wait for its server to end, and return its record.

    With ``lazy`` a mount in use leaves the tree at once, and its server ends when the last user
    does, which is not waited for.  A server that has to go on, because a process with a mount
    namespace of its own has a copy of the mount, is told of by a warning.

    Raises NotFoundError if no image is mounted there, SyscallError (EBUSY) if it is in use, and
    UsageError if something else is mounted over it.
    """
    records = MountRecords()
    path = os.path.realpath(mountpoint)
    # Looked up once: a mount that becomes resident gets another record.
    record = _find(records, path)
    if record is None:
        raise NotFoundError(f"no image is mounted at {path}", hint="lamina mounts lists them")
    detach(path, record.device_number, lazy=lazy)
    if not record.service and not record.served:
        records.remove(record)
    elif not lazy:
        _wait_for_end(record)
    return record


def unmount_all(*, lazy: bool = False) -> Iterator[MountRecord]:
    """Unmount all mounts of this user as :func:`unmount` does one, and yield their records; those
    that end by themselves meanwhile are passed over.
    """
    for status in list_mounts():
        try:
            yield unmount(status.record.mountpoint, lazy=lazy)
        except NotFoundError:
            LOG.info("%s has ended by itself", status.record.mountpoint)


def _find(records: MountRecords, mountpoint: str) -> MountRecord | None:
    """Return the record of what may be mounted at a folder; a stale one is removed."""
    record = records.read(mountpoint)
    if record is not None and any(find_attached([record])):
        return record
    return next((each.record for each in list_mounts(mountpoint)), None)


def _wait_for_end(record: MountRecord) -> None:
    """Wait until who serves the mount has noticed, and removed the record."""
    records = MountRecords()
    deadline = time.monotonic() + _SERVER_END_S
    while records.read(record.mountpoint) == record:
        if time.monotonic() > deadline:
            if record.service and service_status([]) is None:
                records.remove(record)
                return
            LOG.warning(
                "%s is unmounted here; it goes on to be served in another mount namespace",
                record.mountpoint,
            )
            return
        time.sleep(_POLL_S)
    # It may have become resident just before it was unmounted: then nobody notices.
    records.remove(record.as_resident())
