"""One client of the supervisor: what it asked for, and how far that has come."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

import msgspec

from lamina.errors import Error, KernelError
from lamina.linux.memory import forbid_core_dumps
from lamina.linux.superblock import SuperblockWatch
from lamina.serve.error_wire import ReportedError
from lamina.serve.mount_records import MountRecord
from lamina.serve.service import old_wire
from lamina.serve.service.channel import Channel, ChannelError, OldWireError, close_all
from lamina.serve.service.handover import MountDescription, MountHandover
from lamina.serve.service.messages import (
    PROTOCOL,
    Drop,
    Failed,
    Held,
    Hello,
    Hold,
    Message,
    Mounted,
    NotUpgraded,
    Open,
    Opened,
    Recorded,
    Serve,
    ServeMount,
    Serving,
    Status,
    StatusPage,
    UnknownMessageError,
    Upgrade,
)
from lamina.serve.service.spec import MountSpec

if TYPE_CHECKING:
    from lamina.serve.service.supervisor import Supervisor

LOG: Final = logging.getLogger("lamina")

MOST_ATTEMPTS: Final = 5
"""How many workers may die of opening an image before the client hears of it."""


class Client:
    """A connection.  ``number`` is that of the mount it makes."""

    def __init__(self, supervisor: Supervisor, channel: Channel, number: str) -> None:
        self._supervisor = supervisor
        self.channel = channel
        self.number = number
        self._greeted = False
        self._may_only_upgrade = False
        self._wanted: Open | Hold | Status | None = None
        """What the worker is asked for and has not answered."""
        self._start_pipe: list[int] = []
        self._spec: MountSpec | None = None
        self._opened: Opened | None = None
        self._attempts = 0
        self._mount: MountHandover | None = None
        channel.settimeout(5)

    def read(self) -> None:
        """Do what the client says next; its end undoes a mount that is half made."""
        received = None
        try:
            received = self.channel.receive_some()
        except BlockingIOError:
            return
        except OldWireError as error:
            close_all(error.fds)
            LOG.warning("a client of an older lamina is sent away")
            old_wire.refuse(self.channel)
        except (ChannelError, UnknownMessageError) as error:
            LOG.warning("a client says what it must not: %s", error)
            self._fail(error)
            return
        except OSError:
            pass
        if received is None:
            self._leave()
            return
        try:
            self._do(*received)
        except Error as error:
            if self._mount is None:
                # Not ours to keep; a group that nobody answers would stop all readers of its files.
                close_all(received.fds)
            self._fail(error)

    def _do(self, message: Message, fds: list[int]) -> None:
        if not self._greeted or (self._may_only_upgrade and not isinstance(message, Upgrade)):
            self._greet(message)
            return
        match message:
            case Open():
                self._open(message, fds)
            case ServeMount():
                self._serve(message, fds)
            case Mounted():
                self._mounted(message)
            case Hold() | Status():
                self._ask_worker(message)
            case Upgrade():
                self._supervisor.upgrade()
                self.channel.tell(NotUpgraded())
            case _:
                tag = message.__struct_config__.tag
                LOG.warning("a client says %r, which is not for a client to say", tag)
                raise KernelError(f"the mount service is not to be told {tag!r}")

    def _greet(self, message: Message) -> None:
        if self._greeted or not isinstance(message, Hello):
            raise KernelError("a client of the mount service must say hello first")
        self._greeted = True
        self._may_only_upgrade = message.protocol != PROTOCOL
        self.channel.tell(Hello())

    def _open(self, message: Open, fds: list[int]) -> None:
        self._spec = message.spec
        self._close_start_pipe()
        self._start_pipe = fds
        if message.spec.image.has_secrets:
            forbid_core_dumps()
        self._ask_worker(message)

    def _ask_worker(self, message: Open | Hold | Status) -> None:
        self._wanted = msgspec.structs.replace(message, number=self.number)
        if isinstance(message, Open):
            self._attempts += 1
            if self._attempts > MOST_ATTEMPTS:
                self._fail(KernelError("the worker of the mount service dies of this image"))
                return
            self._supervisor.tell_worker(self._wanted, self._start_pipe)
        else:
            self._supervisor.tell_worker(self._wanted)

    def begin_again(self) -> None:
        """Ask a new worker for what is still wanted of it."""
        if isinstance(self._wanted, Hold):
            # What the last worker held of the image, this one does not: the client mounts it anew.
            self._leave()
        elif self._wanted is not None:
            self._ask_worker(self._wanted)
        elif self._mount is not None and self._mount.record is None:
            # A new worker serves all that is kept.
            self.channel.tell(Serving(number=self.number))

    def hear(self, message: Message) -> None:
        """Pass on what the worker answers."""
        match message:
            case Opened():
                self._opened = message
            case StatusPage():
                message = msgspec.structs.replace(message, pids=self._supervisor.pids())
            case Failed() | Serving() | Held():
                pass
            case _:
                return
        if not isinstance(message, Serving):
            self._wanted = None
            # Who waits for its end waits for the worker alone.
            self._close_start_pipe()
        try:
            heard = self.channel.tell(message)
        except (ChannelError, OSError) as error:
            # One client's, and no reason for the supervisor to end.
            LOG.error("a client is left without an answer: %s", error)  # noqa: TRY400 - clear
            heard = False
        if not heard:
            self._leave()

    def _serve(self, message: ServeMount, fds: list[int]) -> None:
        if self._spec is None or self._opened is None:
            raise KernelError("a client of the mount service serves an image before it is opened")
        before: tuple[str, ...] = ()
        if "device" not in message.names:
            # Nothing but its superblock will tell of its end.
            watch = SuperblockWatch("erofs")
            # The client may live in another mount namespace, with a sysfs that this one lacks.
            watch.require()
            before = tuple(sorted(watch.before))
        described = MountDescription(
            number=self.number,
            spec=self._spec.pinned_to(self._opened.pinned),
            device=message.device,
            names=message.names,
            connection=message.connection,
            before=before,
        )
        self._mount = mount = MountHandover.of(described, fds)
        self._supervisor.keep(mount)
        self._supervisor.tell_worker(Serve(mount=described), list(mount.fds.values()))

    def _mounted(self, message: Mounted) -> None:
        if message.shares:
            self._share(message.record)
            return
        mount = self._mount
        if mount is None:
            raise KernelError("a client of the mount service has mounted what nobody serves")
        # Needed while nobody knew which superblock it would be; with many mounts it is long.
        mount.watch, mount.before = message.watch, ()
        mount.record = self._supervisor.describe(message.record)
        self._supervisor.keep(mount)
        LOG.info(
            "%s is mounted: %s, %s", mount.spec.mountpoint, mount.record.image, mount.record.device
        )
        self._supervisor.tell_worker(
            Mounted(number=mount.number, record=mount.record, watch=mount.watch)
        )
        self.channel.tell(Recorded(record=mount.record))

    def _share(self, record: MountRecord) -> None:
        """Note a further mount of a superblock that is served for another one."""
        first = self._supervisor.first_of(record)
        if self._spec is None or first is None:
            raise KernelError("what a mount is to share the superblock of is gone, or out of sight")
        described = MountDescription(
            number=self.number,
            spec=self._spec,
            device=record.device,
            names=(),
            record=self._supervisor.describe(record),
            watch=first.watch,
            shares=first.number,
        )
        self._mount = mount = MountHandover.of(described, [])
        self._supervisor.keep(mount)
        self._supervisor.tell_worker(Serve(mount=described))
        LOG.info("%s is mounted beside %s", mount.mountpoint, first.mountpoint)
        assert mount.record is not None
        self.channel.tell(Recorded(record=mount.record))

    def _fail(self, error: Error) -> None:
        with contextlib.suppress(ChannelError, OSError):
            self.channel.tell(Failed(error=ReportedError.of(error)))
        self._leave()

    def _close_start_pipe(self) -> None:
        close_all(self._start_pipe)
        self._start_pipe = []

    def _leave(self) -> None:
        self._close_start_pipe()
        mount, self._mount = self._mount, None
        if mount is not None and mount.record is None:
            self._supervisor.part_with_half_made(mount)
        elif mount is None and self._spec is not None:
            self._supervisor.tell_worker(Drop(number=self.number))
        self._supervisor.part_with(self)


def abandon(mount: MountHandover) -> None:
    """End the FUSE connection of a mount, so that its readers get errors and its server ends."""
    from lamina.linux.fuse_device import abort_connection

    if mount.connection and os.geteuid() == 0:
        with contextlib.suppress(Error, OSError):
            abort_connection(mount.connection, mount.fds["device"])
