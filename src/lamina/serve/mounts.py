"""What is mounted, and unmounting it: ``lamina mounts`` and ``lamina umount``."""

from __future__ import annotations

import logging
import os
import time
from enum import StrEnum
from typing import Any, Final, NamedTuple

from lamina.errors import NotFoundError, UsageError
from lamina.linux.mount import read_mount_table
from lamina.serve.detach import detach
from lamina.serve.service.client import service_status
from lamina.serve.state import MountRecord, MountRecords

LOG: Final = logging.getLogger("lamina")

_POLL_S: Final = 0.01
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
    ``options`` are what the kernel has for the mount now; none for one that is detached.
    """

    record: MountRecord
    state: MountState
    pids: dict[str, int]
    ready_bytes: int | None = None
    total_bytes: int | None = None
    options: tuple[str, ...] = ()

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
    named = None if mountpoint is None else [mountpoint]
    served = any(record.service for record in _records(records, mountpoint))
    status = service_status(named) if served else None
    # Read again: a record may have come, or lost its service, while the service was asked.
    table = {(entry.mountpoint, entry.device): entry.options for entry in read_mount_table()}
    found = []
    for record in _records(records, mountpoint):
        options = table.get((record.mountpoint, record.device_number))
        mount = _status_of(record, status, attached=options is not None)
        if mount is None:
            records.remove(record)
        else:
            found.append(mount._replace(options=tuple(options.split(",") if options else ())))
    return found


def _records(records: MountRecords, mountpoint: str | None) -> list[MountRecord]:
    if mountpoint is None:
        return records.all()
    record = records.read(mountpoint)
    return [] if record is None else [record]


def _status_of(
    record: MountRecord, status: dict[str, Any] | None, *, attached: bool
) -> MountStatus | None:
    lives = MountState.SERVED if attached else MountState.DETACHED
    if record.service and status is not None:
        known = status["mounts"].get(record.mountpoint)
        if known is not None:
            sizes = known.get("ready_bytes"), known.get("total_bytes")
            return MountStatus(record, lives, status["pids"], *sizes)
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
    record = next((each.record for each in list_mounts(path)), None)
    if record is None:
        raise NotFoundError(f"no image is mounted at {path}", hint="lamina mounts lists them")
    detach(path, record.device_number, lazy=lazy)
    if not record.service and not record.served:
        records.remove(record)
    elif not lazy:
        _wait_for_end(record)
    return record


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
