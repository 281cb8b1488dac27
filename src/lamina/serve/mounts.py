"""What is mounted, and unmounting it: ``lamina mounts`` and ``lamina umount``."""

from __future__ import annotations

import logging
import os
import select
from enum import StrEnum
from typing import Final, NamedTuple

from lamina.errors import NotFoundError
from lamina.linux.mount import read_mount_table
from lamina.linux.process import open_pidfd
from lamina.linux.syscalls import SyscallError
from lamina.serve.detach import detach
from lamina.serve.state import MountRecord, MountRecords

LOG: Final = logging.getLogger("lamina")

_SERVER_END_S: Final = 5.0
"""How long a server may take to end after its mount is gone."""


class MountState(StrEnum):
    """How a mount is."""

    SERVED = "served"
    BROKEN = "broken"
    """The server is gone; what the page cache has not got fails with an error."""
    DETACHED = "detached"
    """Unmounted lazily; the server waits for the last user."""


class MountStatus(NamedTuple):
    """A record, and how the mount is now."""

    record: MountRecord
    state: MountState


def list_mounts() -> list[MountStatus]:
    """Return this user's mounts, sorted by mountpoint; stale records are removed."""
    records = MountRecords()
    table = {(entry.mountpoint, entry.device) for entry in read_mount_table()}
    found = []
    for record in records.all():
        attached = (record.mountpoint, record.device_number) in table
        if record.served:
            state = MountState.SERVED if attached else MountState.DETACHED
            found.append(MountStatus(record, state))
        elif attached:
            found.append(MountStatus(record, MountState.BROKEN))
        else:
            records.remove(record)
    return found


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
    record = records.read(path)
    if record is None or not _exists(record):
        if record is not None:
            records.remove(record)
        raise NotFoundError(f"no image is mounted at {path}", hint="lamina mounts lists them")
    detach(path, record.device_number, lazy=lazy)
    if not record.served:
        records.remove(record)
    elif not lazy:
        _wait_for_end(record)
    return record


def _exists(record: MountRecord) -> bool:
    return record.served or any(
        (entry.mountpoint, entry.device) == (record.mountpoint, record.device_number)
        for entry in read_mount_table()
    )


def _wait_for_end(record: MountRecord) -> None:
    try:
        pidfd = open_pidfd(record.pid)
    except SyscallError:
        return
    try:
        # Looked at again behind the pidfd: the number may belong to another process by now.
        if record.served and not select.select([pidfd], [], [], _SERVER_END_S)[0]:
            LOG.warning(
                "%s is unmounted here; process %d goes on to serve it in another mount namespace",
                record.mountpoint,
                record.pid,
            )
    finally:
        os.close(pidfd)
