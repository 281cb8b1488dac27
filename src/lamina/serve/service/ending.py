"""How the supervisor learns that a mount has come to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from lamina.errors import Error
from lamina.linux.mount import SuperblockWatch, read_mount_table
from lamina.serve.detach import detach
from lamina.serve.holder import Holder
from lamina.serve.service.clients import abandon
from lamina.serve.service.kept import KeptMount
from lamina.serve.state import MountRecord, MountRecords

if TYPE_CHECKING:
    from lamina.serve.service.supervisor import Supervisor

LOG: Final = logging.getLogger("lamina")

ENDED_POLL_S: Final = 1.0
SOON_POLL_S: Final = 0.02
SOON_S: Final = 1.0
"""How long it is looked often, after the mount table has changed."""
MOUNTING_S: Final = 1.0
"""How long the mount of a client that was killed may take to appear."""


class MountEnds:
    """Watches the mounts that are made.

    A FUSE connection tells by itself that it is over, which follows the end of the superblock.
    Nothing tells of the end of a superblock with fanotify: its folder in sysfs is looked for.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._mounts: dict[str, KeptMount] = {}
        self._looked: dict[str, KeptMount] = {}
        self._half_made: dict[str, float] = {}
        self._soon_until = 0.0
        self._next_look = 0.0
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # The kernel reports a change of the table as an exceptional condition.
        supervisor.watch(self._table, self._table_changed, select.EPOLLPRI | select.EPOLLERR)

    def close(self) -> None:
        """Close the mount table."""
        os.close(self._table)

    def add(self, mount: KeptMount) -> None:
        """Watch a mount, once."""
        if mount.number in self._mounts:
            return
        self._mounts[mount.number] = mount
        if "device" in mount.fds:
            # No events asked for: the end of the connection is an error, which is always told.
            self._supervisor.watch(mount.fds["device"], partial(self._gone, mount), 0)
        else:
            self._looked[mount.number] = mount
            if mount.record is None and not mount.watch:
                self._half_made[mount.number] = time.monotonic() + MOUNTING_S
            self._table_changed()

    def discard(self, mount: KeptMount) -> None:
        """Watch it no more; call before its descriptors are closed."""
        self._mounts.pop(mount.number, None)
        self._looked.pop(mount.number, None)
        self._half_made.pop(mount.number, None)
        if "device" in mount.fds:
            self._supervisor.forget(mount.fds["device"])

    @property
    def wait_s(self) -> float:
        """How long to wait for events before the next :meth:`look`."""
        if not self._looked:
            return ENDED_POLL_S
        return SOON_POLL_S if time.monotonic() < self._soon_until else ENDED_POLL_S

    def look(self) -> None:
        """Find the mounts whose superblocks have gone, if it is time."""
        now = time.monotonic()
        if not self._looked or now < self._next_look:
            return
        self._next_look = now + self.wait_s
        table = {(entry.mountpoint, entry.device) for entry in read_mount_table()}
        for mount in list(self._looked.values()):
            record = mount.record
            if mount.number in self._half_made and not self._made(mount, now):
                continue
            attached = record and (record["mountpoint"], record["device_number"]) in table
            if not attached and not any(map(os.path.exists, mount.watch)):
                self._gone(mount)

    def _made(self, mount: KeptMount, now: float) -> bool:
        """Find out, once its client had the time to finish, which superblocks may be this one's."""
        if now < self._half_made[mount.number]:
            return False
        del self._half_made[mount.number]
        mount.watch = sorted(SuperblockWatch("erofs").before - set(mount.before))
        self._supervisor.keep(mount)
        return True

    def _table_changed(self) -> None:
        self._soon_until = time.monotonic() + SOON_S
        self._next_look = 0.0

    def _gone(self, mount: KeptMount) -> None:
        LOG.info("%s is unmounted", mount.spec.mountpoint)
        attached = mount.record is not None and any(
            (entry.mountpoint, entry.device)
            == (mount.record["mountpoint"], mount.record["device_number"])
            for entry in read_mount_table()
        )
        # A connection that was aborted leaves a broken mount, which its record tells of.
        self._supervisor.drop(mount, forget_record=not attached)

    def resident(self, mount: KeptMount) -> None:
        """All is here and the kernel reads it by itself: leave the mount alone."""
        if mount.record is None:
            return
        LOG.info("%s is resident: it needs no server any more", mount.spec.mountpoint)
        MountRecords().write(MountRecord(**{**mount.record, "resident": True, "service": False}))
        self._supervisor.drop(mount, forget_record=False)

    def unmount_all(self) -> None:
        """Unmount all; who still uses one gets errors from now on."""
        mounts = list(self._supervisor.state.mounts.values())
        for mount in mounts:
            record = mount.record
            if record is not None:
                with contextlib.suppress(Error):
                    detach(record["mountpoint"], record["device_number"], lazy=True)
        # Of a group only one may read what waits in it.
        self._supervisor.state.end_worker()
        for mount in mounts:
            abandon(mount)
            _deny_readers(mount)
            self._supervisor.drop(mount)


def _deny_readers(mount: KeptMount) -> None:
    """Leave the group of a mount that somebody may still use to a process that answers with
    errors: without one, the kernel would let its readers through to what was never fetched.
    """
    if "group" not in mount.fds:
        return
    if mount.record is None and not mount.watch:
        # Its client may be about to attach it: the holder looks for it a moment later.
        Holder(mount.fds["group"], mount.before).close(handed_over=True)
    elif any(map(os.path.exists, mount.watch)):
        holder = Holder(mount.fds["group"], ())
        holder.watch(mount.watch)
        holder.close(handed_over=True)
