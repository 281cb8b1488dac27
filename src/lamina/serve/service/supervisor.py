"""The process that talks to clients, keeps the records, and replaces worker and holder.

It has one thread and waits for nobody but the holder, who answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Final, Self

import msgspec

from lamina.linux.process import set_name, set_oom_score
from lamina.serve.detach import find_attached
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.service.channel import Channel, ChannelError
from lamina.serve.service.clients import Client, abandon
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.messages import (
    Begin,
    Bye,
    Drain,
    Drop,
    Failed,
    Keep,
    Lost,
    Message,
    NoteSupervisor,
    NoteWorker,
    Opened,
    Resident,
    UnknownMessageError,
)
from lamina.serve.service.mount_watcher import MountWatcher
from lamina.serve.service.respawn import PAUSE_S, Respawn, reap
from lamina.serve.service.state import ServiceState, fork_role
from lamina.serve.service.worker import work

LOG: Final = logging.getLogger("lamina")

FIRST_CLIENT_S: Final = 10.0
"""How long a service without a mount waits for one."""
OOM_SCORE: Final = -500
DRAIN_S: Final = 0.3
"""How long a worker that is to be replaced may take to answer what it has begun."""


def supervise(state: ServiceState, holder: Channel) -> None:
    """Be the supervisor until there is nothing left to serve."""
    set_name("lamina-super")
    set_oom_score(OOM_SCORE)
    with Supervisor(state, holder) as supervisor:
        supervisor.run()


class Supervisor:
    """See the module."""

    def __init__(self, state: ServiceState, holder: Channel) -> None:
        self.state = state
        self._holder = holder
        self._worker: Channel | None = None
        self._respawn = Respawn()
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._clients: dict[int, Client] = {}
        self._number = 0
        self._idle_until = time.monotonic() + FIRST_CLIENT_S
        self._stop = False
        self._upgrade = False
        self._signals, self._wakeup = socket.socketpair()
        self._ends = MountWatcher(self)

    def __enter__(self) -> Self:
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is this process's alone; the state goes on, in a fork."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        self._poll.close()
        self._ends.close()
        self._signals.close()
        self._wakeup.close()
        for client in self._clients.values():
            client.channel.close()
        if self._worker is not None:
            self._worker.close()
        self._holder.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._upgrade = True
        else:
            self._stop = True

    def run(self) -> None:
        """Serve clients until the last mount has gone."""
        self.state.supervisor_pid = os.getpid()
        self._tell_holder(NoteSupervisor(pid=os.getpid()))
        self._watch(self._holder.fileno(), self._replace_holder)
        self._watch(self.state.listener.fileno(), self._accept)
        self._watch(self._signals.fileno(), self._drain_signals)
        for mount in list(self.state.mounts.values()):
            if mount.record is None:
                # Its client saw the last supervisor end, and begins anew.
                self.part_with_half_made(mount)
            else:
                self._ends.add(mount)
        # A worker of the last supervisor.  Not the holder ends it, before there was a successor:
        # if the holder were killed as well in that moment, nobody would have the descriptors.
        self.state.end_worker()
        self._start_worker()
        while not self._stop and not self._idle:
            # One at a time: what a callback closes may be another descriptor of the same number
            # by the next event, and a living holder taken for one that is gone.
            for fd, _ in self._poll.poll(self._ends.wait_s, 1):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    callback()
            self._ends.look()
            if self._upgrade:
                self._upgrade = False
                self.upgrade()
        if self._stop and not os.environ.get("NOTIFY_SOCKET"):
            # A service manager keeps the mounts until it starts the service again.
            self._ends.unmount_all()
        self._end()

    def _drain_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._signals.recv(64)

    @property
    def _idle(self) -> bool:
        if self.state.mounts or self._clients or self.state.lingering:
            return False
        return time.monotonic() > self._idle_until

    def _end(self) -> None:
        """End all of the service: nothing is served any more."""
        self._holder.tell(Bye())
        self.state.end_worker()

    def _watch(self, fd: int, callback: Callable[[], None], events: int = select.EPOLLIN) -> None:
        self._callbacks[fd] = callback
        self._poll.register(fd, events)

    def watch(self, fd: int, callback: Callable[[], None], events: int) -> None:
        """Call back when there are ``events``, or an error, at ``fd``."""
        self._watch(fd, callback, events)

    def forget(self, fd: int) -> None:
        """End a :meth:`watch`; call before closing."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # The holder.

    def _tell_holder(self, message: Message, fds: list[int] | None = None) -> None:
        received = self._holder.ask(message, fds or ())
        if received is None:
            self._replace_holder()
        elif isinstance(received.message, Failed):
            LOG.error("the holder does not understand: %s", received.message.error.message)

    def _replace_holder(self) -> None:
        """Fork another one, which has all that this process has."""
        from lamina.serve.service.standby import stand_by

        LOG.warning("the holder is gone, another one takes its place")
        self.forget(self._holder.fileno())
        self._holder.close()
        ours, theirs = Channel.pair()
        try:
            self.state.holder_pid = fork_role(partial(stand_by, self.state, theirs))
        except BaseException:
            ours.close()
            raise
        theirs.close()
        self._holder = ours
        self._watch(ours.fileno(), self._replace_holder)

    # The worker.

    def _start_worker(self) -> None:
        self._respawn.begin()
        ours, theirs = Channel.pair()
        try:
            pid = fork_role(partial(work, self.state, theirs))
        except BaseException:
            ours.close()
            raise
        theirs.close()
        self._worker = ours
        pidfd = os.pidfd_open(pid)
        self.state.note_worker(pidfd)
        self.state.worker_pid = pid
        # Nobody reads a device before the holder knows whom to kill.
        self._tell_holder(NoteWorker(), [pidfd])
        self._watch(pidfd, self._replace_worker)
        self._watch(ours.fileno(), self._hear_worker)
        ours.tell(Begin())
        for client in list(self._clients.values()):
            client.begin_again()

    def _replace_worker(self) -> None:
        pause_s = self._respawn.pause_s(self._forget_worker())
        LOG.warning("the worker is gone, another one takes over")
        time.sleep(pause_s)
        self._start_worker()

    def _forget_worker(self) -> int | None:
        """Let go of a worker that has ended; return its status."""
        assert self._worker is not None
        self.forget(self.state.worker_pidfd)
        self.forget(self._worker.fileno())
        self._worker.close()
        self.state.end_worker()
        return reap(self.state.worker_pid)

    def _hear_worker(self) -> None:
        assert self._worker is not None
        received = None
        try:
            received = self._worker.receive_some()
        except BlockingIOError:
            return
        except UnknownMessageError as error:
            LOG.error("the worker says something odd: %s", error)  # noqa: TRY400 - one clear line
            return
        except ChannelError as error:
            LOG.error("the worker is replaced: %s", error)  # noqa: TRY400 - one clear line
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.state.worker_pidfd, signal.SIGKILL)
        if received is None:
            # Its end is told by another descriptor.
            self.forget(self._worker.fileno())
            return
        message = received.message
        number: str = getattr(message, "number", "")
        mount = self.state.mounts.get(number)
        if isinstance(message, Resident) and mount is not None:
            self._ends.resident(mount)
        elif isinstance(message, Lost) and mount is not None:
            LOG.error("%s is broken: the kernel has forgotten its reads", mount.spec.mountpoint)
            self.drop(mount)
        asking = [each for each in self._clients.values() if each.number == number]
        for client in asking:
            client.hear(message)
        if isinstance(message, Opened) and not asking:
            # Who wanted the image has left meanwhile.
            self.tell_worker(Drop(number=number))

    def tell_worker(self, message: Message, fds: list[int] | None = None) -> None:
        """Say something to the worker; one that is gone is told by its successor's fork."""
        assert self._worker is not None
        self._worker.tell(message, fds or ())

    # Clients and mounts.

    def _accept(self) -> None:
        try:
            end, _ = self.state.listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                # EMFILE above all: it waits, and what is served is served on.
                LOG.error("a client cannot be heard: %s", error)  # noqa: TRY400 - one clear line
                time.sleep(PAUSE_S)
            return
        self._number += 1
        number = f"{os.getpid()}-{self._number}"
        client = Client(self, Channel(end), number)
        self._clients[end.fileno()] = client
        self._watch(end.fileno(), client.read)

    def part_with(self, client: Client) -> None:
        """Close a client's connection."""
        fd = client.channel.fileno()
        if self._clients.pop(fd, None) is not None:
            self.forget(fd)
            client.channel.close()
        self._idle_until = min(self._idle_until, time.monotonic())

    def keep(self, mount: MountHandover) -> None:
        """Keep a mount, and its record once it has one.  Raises StoreError."""
        self.note(mount)
        if mount.record is not None:
            # First: one whose record has no room is let go of when its client undoes it.
            self._ends.add(mount)
            MountRecords().write(mount.record)

    def note(self, mount: MountHandover) -> None:
        """Keep a mount, or what has changed of it, here and in the holder."""
        known = self.state.mounts.get(mount.number)
        self.state.mounts[mount.number] = mount
        fds = [] if known is not None else list(mount.fds.values())
        self._tell_holder(Keep(mount=mount.describe()), fds)

    def first_of(self, record: MountRecord) -> MountHandover | None:
        """Return the mount whose superblock a further mount shares; None if there is none, or that
        one is in another mount namespace, so that nobody here would see its end.
        """
        if not any(find_attached([record])):
            return None
        for mount in reversed(self.state.mounts.values()):
            known = mount.record
            if known is not None and known.device_number == record.device_number:
                return self.state.mounts.get(mount.shares) if mount.shares else mount
        return None

    def part_with_half_made(self, mount: MountHandover) -> None:
        """Let go of a mount whose client is gone before it told that it was made.

        It may have been made nonetheless.  FUSE then gives errors; readers of a fanotify mount are
        served for as long as there may be any, for without its group they would see zeros.
        """
        if "group" in mount.fds:
            self._ends.add(mount)
        else:
            abandon(mount)
            self.drop(mount)

    def drop(self, mount: MountHandover, *, forget_record: bool = True) -> None:
        """Let go of a mount everywhere."""
        self._ends.discard(mount)
        self.state.drop(mount.number)
        self._tell_holder(Drop(number=mount.number))
        if self._worker is not None:
            self.tell_worker(Drop(number=mount.number))
        if mount.record is not None and forget_record:
            MountRecords().remove(mount.record)
        self._idle_until = min(self._idle_until, time.monotonic())

    def pids(self) -> dict[str, int]:
        """Return who is who now."""
        state = self.state
        return {
            "holder": state.holder_pid,
            "supervisor": os.getpid(),
            "worker": state.worker_pid,
        }

    def upgrade(self) -> bool:
        """Let a fresh interpreter, with the code as it is now, take over; return whether it has
        begun to.
        """
        from lamina.serve.service.upgrade import hand_over

        if not hand_over(self.state):
            return False
        self.tell_worker(Drain())
        from lamina.serve.service.state import wait_for_end

        wait_for_end(self.state.worker_pidfd, DRAIN_S)
        self.state.end_worker()
        self._holder.tell(Bye())
        # No goodbye to the successor, which waits for the end of this process.
        logging.shutdown()
        os._exit(0)

    def describe(self, record: MountRecord) -> MountRecord:
        """Return the record of a new mount with this process in it."""
        from lamina.linux.process import start_time_ticks

        ticks = start_time_ticks(os.getpid()) or 0
        return msgspec.structs.replace(record, pid=os.getpid(), start_ticks=ticks, service=True)
