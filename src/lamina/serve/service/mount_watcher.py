"""How the supervisor learns that a mount has come to its end."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from lamina.errors import Error, StoreError
from lamina.linux.mount_table import mounted_ids
from lamina.linux.superblock import SuperblockWatch
from lamina.linux.syscalls import SyscallError
from lamina.serve.deny_guard import DenyGuard
from lamina.serve.detach import detach, find_attached
from lamina.serve.mount_records import MountRecords
from lamina.serve.service.clients import abandon
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.messages import Mounted

if TYPE_CHECKING:
    from lamina.serve.service.supervisor import Supervisor

LOG: Final = logging.getLogger("lamina")

ENDED_POLL_S: Final = 1.0
SOON_POLL_S: Final = 0.02
SOON_S: Final = 1.0
"""How long it is looked often, after the mount table has changed."""
MOUNTING_S: Final = 1.0
"""How long the mount of a client that was killed may take to appear."""


class MountWatcher:
    """Watches the mounts that are made.

    A FUSE connection tells by itself that it is over, which follows the end of the superblock.
    Nothing tells of the end of a superblock with fanotify: its folder in sysfs is looked for.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._mounts: dict[str, MountHandover] = {}
        self._looked: dict[str, MountHandover] = {}
        self._half_made: dict[str, float] = {}
        self._further: dict[str, MountHandover] = {}
        """Mounts that share the superblock of another one."""
        self._numbers: set[int] = set()
        """Of these and of those that they share with, among mounts, as far as they were there."""
        self._leases: dict[str, int] = {}
        """The pidfds of the processes that mounts are for."""
        self._has_changed = True
        self._soon_until = 0.0
        self._next_look = 0.0
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # The kernel reports a change of the table as an exceptional condition.
        supervisor.watch(self._table, self._table_changed, select.EPOLLPRI | select.EPOLLERR)

    def close(self) -> None:
        """Close the mount table, and what tells of processes."""
        for fd in self._leases.values():
            os.close(fd)
        os.close(self._table)

    def add(self, mount: MountHandover) -> None:
        """Watch a mount, once."""
        if mount.number in self._mounts:
            return
        self._mounts[mount.number] = mount
        self._hold_lease(mount)
        if mount.shares:
            self._further[mount.number] = mount
            first = self._mounts.get(mount.shares)
            self._numbers |= _mount_ids([mount] if first is None else [mount, first])
            return
        if "device" in mount.fds:
            # No events asked for: the end of the connection is an error, which is always told.
            self._supervisor.watch(mount.fds["device"], partial(self._gone, mount), 0)
        else:
            self._looked[mount.number] = mount
            if mount.record is None and not mount.watch:
                self._half_made[mount.number] = time.monotonic() + MOUNTING_S
            self._table_changed()

    def discard(self, mount: MountHandover) -> None:
        """Watch it no more; call before its descriptors are closed."""
        self._mounts.pop(mount.number, None)
        self._let_lease_go(mount)
        self._looked.pop(mount.number, None)
        self._further.pop(mount.number, None)
        self._half_made.pop(mount.number, None)
        if "device" in mount.fds:
            self._supervisor.forget(mount.fds["device"])

    def _hold_lease(self, mount: MountHandover) -> None:
        """Watch the process that a mount is for."""
        if mount.spec.lease is None:
            return
        fd = mount.spec.lease.open()
        if fd is None:
            self._lapse(mount)
        else:
            self._leases[mount.number] = fd
            self._supervisor.watch(fd, partial(self._lapse, mount), select.EPOLLIN)

    def _let_lease_go(self, mount: MountHandover) -> None:
        fd = self._leases.pop(mount.number, None)
        if fd is not None:
            self._supervisor.forget(fd)
            os.close(fd)

    def _lapse(self, mount: MountHandover) -> None:
        """Take a mount away whose process has ended; who still uses it is served."""
        LOG.info("%s is taken away: the process that it was for has ended", mount.mountpoint)
        self._let_lease_go(mount)
        if mount.record is not None:
            with contextlib.suppress(Error):
                detach(mount.record.mountpoint, mount.record.device_number, lazy=True)

    @property
    def wait_s(self) -> float:
        """How long to wait for events before the next :meth:`look`."""
        if not self._looked:
            return ENDED_POLL_S
        return SOON_POLL_S if time.monotonic() < self._soon_until else ENDED_POLL_S

    def look(self) -> None:
        """Find the mounts whose superblocks have gone, if it is time."""
        if self._has_changed and self._further and self._may_miss_some():
            self._look_at_further()
        self._has_changed = False
        now = time.monotonic()
        if not self._looked or now < self._next_look:
            return
        self._next_look = now + self.wait_s
        for mount in list(self._looked.values()):
            if mount.number in self._half_made and not self._made(mount, now):
                continue
            # A superblock outlives its last place in a tree, never the other way about.
            if not any(map(os.path.exists, mount.watch)):
                self._gone(mount)

    def _made(self, mount: MountHandover, now: float) -> bool:
        """Find out, once its client had the time to finish, which superblocks may be this one's."""
        if now < self._half_made[mount.number]:
            return False
        del self._half_made[mount.number]
        mount.watch = tuple(sorted(SuperblockWatch("erofs").before - set(mount.before)))
        self._supervisor.keep(mount)
        return True

    def _may_miss_some(self) -> bool:
        """Whether one of the mounts that share superblocks may have left the tree.

        Most changes of the table are mounts that come, beside thousands of others.
        """
        try:
            return not self._numbers <= mounted_ids()
        except SyscallError:
            return True

    def _look_at_further(self) -> None:
        """Let go of mounts that share a superblock and are not in the tree any more."""
        groups: dict[str, list[MountHandover]] = {}
        for mount in self._further.values():
            groups.setdefault(mount.shares, []).append(mount)
        firsts = [self._mounts[number] for number in groups if number in self._mounts]
        records = [each.record for each in (*firsts, *self._further.values()) if each.record]
        attached = {record.mountpoint for record in find_attached(records)}
        for first in firsts:
            left = [each for each in groups[first.number] if each.mountpoint in attached]
            if left and first.mountpoint not in attached:
                self._move(first, left[0])
        for mount in list(self._further.values()):
            if mount.mountpoint not in attached:
                LOG.info("%s is unmounted", mount.mountpoint)
                self._supervisor.drop(mount)
        self._numbers = _mount_ids([*firsts, *self._further.values()])

    def _move(self, first: MountHandover, other: MountHandover) -> None:
        """Have the mount that a superblock was made for be where another one of it is."""
        LOG.info("%s is unmounted", first.mountpoint)
        old, first.record = first.record, other.record
        assert first.record is not None
        # The worker knows the folder all the while, or who lists mounts would call it broken.
        self._supervisor.tell_worker(
            Mounted(number=first.number, record=first.record, watch=first.watch)
        )
        self._let_lease_go(first)
        first.spec = msgspec.structs.replace(first.spec, lease=other.spec.lease)
        self._supervisor.note(first)
        self._supervisor.drop(other, forget_record=False)
        self._hold_lease(first)
        if old is not None:
            MountRecords().remove(old)

    def _drop_further(self, first: MountHandover) -> None:
        for mount in [each for each in self._further.values() if each.shares == first.number]:
            records = [] if mount.record is None else [mount.record]
            self._supervisor.drop(mount, forget_record=not any(find_attached(records)))

    def _table_changed(self) -> None:
        self._has_changed = True
        self._soon_until = time.monotonic() + SOON_S
        self._next_look = 0.0

    def _gone(self, mount: MountHandover) -> None:
        LOG.info("%s is unmounted", mount.mountpoint)
        self._drop_further(mount)
        records = [] if mount.record is None else [mount.record]
        # A connection that was aborted leaves a broken mount, which its record tells of.
        self._supervisor.drop(mount, forget_record=not any(find_attached(records)))

    def resident(self, mount: MountHandover) -> None:
        """All is here and the kernel reads it by itself: leave the mount alone."""
        if mount.record is None:
            return
        further = [each for each in self._further.values() if each.shares == mount.number]
        try:
            for each in (*further, mount):
                if each.record is not None:
                    # Unless it was unmounted, and another mount made, before that was noticed.
                    MountRecords().replace(each.record, each.record.as_resident())
        except StoreError as error:
            LOG.error("%s is served on: %s", mount.mountpoint, error)  # noqa: TRY400 - clear
            return
        LOG.info("%s is resident: it needs no server any more", mount.mountpoint)
        for each in (*further, mount):
            self._supervisor.drop(each, forget_record=False)

    def unmount_all(self) -> None:
        """Unmount all; who still uses one gets errors from now on."""
        mounts = list(self._supervisor.state.mounts.values())
        for mount in mounts:
            record = mount.record
            if record is not None:
                with contextlib.suppress(Error):
                    detach(record.mountpoint, record.device_number, lazy=True)
        # Of a group only one may read what waits in it.
        self._supervisor.state.end_worker()
        for mount in mounts:
            abandon(mount)
            _deny_readers(mount)
            LOG.info("%s is unmounted, because the service ends", mount.mountpoint)
            self._supervisor.drop(mount)


def _mount_ids(mounts: Iterable[MountHandover]) -> set[int]:
    return {mount.record.mount_id for mount in mounts if mount.record is not None}


def _deny_readers(mount: MountHandover) -> None:
    """Leave the group of a mount that somebody may still use to a process that answers with
    errors: without one, the kernel would let its readers through to what was never fetched.
    """
    if "group" not in mount.fds:
        return
    if mount.record is None and not mount.watch:
        # Its client may be about to attach it: the holder looks for it a moment later.
        DenyGuard(mount.fds["group"], mount.before).close(handed_over=True)
    elif any(map(os.path.exists, mount.watch)):
        holder = DenyGuard(mount.fds["group"], ())
        holder.watch(mount.watch)
        holder.close(handed_over=True)
