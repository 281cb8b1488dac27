"""One client of the supervisor: what it asked for, and how far that has come."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lamina.errors import Error, KernelError
from lamina.linux.memory import forbid_core_dumps
from lamina.linux.mount import SuperblockWatch
from lamina.serve.reported_error import encode_error
from lamina.serve.service.channel import Channel, ChannelError, Message
from lamina.serve.service.kept import KeptMount
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
        self._spec: MountSpec | None = None
        self._opened: dict[str, Any] | None = None
        self._attempts = 0
        self._status_wanted: dict[str, Any] | None = None
        self._asked_to_hold = False
        self._mount: KeptMount | None = None
        channel.settimeout(5)

    def read(self) -> None:
        """Do what the client says next; its end undoes a mount that is half made."""
        message = None
        try:
            message = self.channel.receive_some()
        except BlockingIOError:
            return
        except ChannelError as error:
            self._fail(error)
            return
        except OSError:
            pass
        if message is None:
            self._leave()
            return
        try:
            self._do(message)
        except Error as error:
            self._refuse(message, error)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            what = f"the mount service does not understand a request: {error}"
            self._refuse(message, KernelError(what))

    def _do(self, message: Message) -> None:
        op = message.body["op"]
        steps: dict[str, Callable[[Message], None]] = {
            "open": self._open,
            "serve": self._serve,
            "mounted": self._mounted,
            "held": self._held,
            "status": self._status,
            "upgrade": self._upgrade,
        }
        if op not in steps:
            raise KernelError(f"the mount service does not know {op!r}")
        steps[op](message)

    def _open(self, message: Message) -> None:
        self._spec = MountSpec.from_json(message.body["spec"])
        if self._spec.has_secrets:
            forbid_core_dumps()
        self.begin_again()

    def _held(self, message: Message) -> None:
        self._asked_to_hold = True
        self._supervisor.tell_worker("held", number=self.number, watch=message.body["watch"])

    def _status(self, message: Message) -> None:
        self._status_wanted = {"mountpoints": message.body.get("mountpoints")}
        self.begin_again()

    def _upgrade(self, _message: Message) -> None:
        self.channel.say("upgraded" if self._supervisor.upgrade() else "not upgraded")

    def begin_again(self) -> None:
        """Ask the worker, which may be a new one, for what is still wanted of it."""
        if self._status_wanted is not None:
            self._supervisor.tell_worker("status", number=self.number, **self._status_wanted)
        elif self._asked_to_hold:
            # What the last worker held of the image, this one does not: the client mounts it anew.
            self._leave()
        elif self._spec is not None and self._opened is None:
            self._attempts += 1
            if self._attempts > MOST_ATTEMPTS:
                self._fail(KernelError("the worker of the mount service dies of this image"))
                return
            self._supervisor.tell_worker("open", number=self.number, spec=self._spec.to_json())
        elif self._mount is not None and self._mount.record is None:
            # A new worker serves all that is kept.
            self.channel.say("serving")

    def hear(self, message: Message) -> None:
        """Pass on what the worker answers."""
        body = message.body
        if body["op"] == "opened":
            self._opened = body
        elif body["op"] == "status":
            self._status_wanted = None
            body = {**body, "pids": self._supervisor.pids()}
        elif body["op"] == "held":
            self._asked_to_hold = False
        elif body["op"] not in ("failed", "serving"):
            return
        try:
            heard = self.channel.say(**body)
        except ChannelError as error:
            # One client's, and no reason for the supervisor to end.
            LOG.error("a client is left without an answer: %s", error)  # noqa: TRY400 - clear
            heard = False
        if not heard:
            self._leave()

    def _serve(self, message: Message) -> None:
        body, fds = message
        if self._spec is None or self._opened is None:
            raise KernelError("a client of the mount service serves an image before it is opened")
        spec = msgspec.structs.replace(self._spec, pinned=self._opened["pinned"])
        names, connection = body["names"], body["connection"]
        watch = SuperblockWatch("erofs")
        if body["device"] == "fanotify":
            # The client may live in another mount namespace, with a sysfs that this one lacks.
            watch.require()
        mount = KeptMount(
            self.number, spec, body["device"], dict(zip(names, fds, strict=True)), None, [],
            connection, sorted(watch.before),
        )  # fmt: skip
        self._mount = mount
        self._supervisor.keep(mount)
        fields = mount.encode()
        self._supervisor.tell_worker("serve", list(mount.fds.values()), mount=fields)

    def _mounted(self, message: Message) -> None:
        body = message.body
        mount = self._mount
        if mount is None:
            raise KernelError("a client of the mount service has mounted what nobody serves")
        # Needed while nobody knew which superblock it would be; with many mounts it is long.
        mount.watch, mount.before = body["watch"], []
        mount.record = self._supervisor.describe(body["record"])
        self._supervisor.keep(mount)
        self._supervisor.tell_worker(
            "mounted", number=mount.number, watch=mount.watch, record=mount.record
        )
        self.channel.say("record", record=mount.record)

    def _refuse(self, message: Message, error: Error) -> None:
        if self._mount is None:
            # Not ours to keep; a group that nobody answers would stop all readers of its files.
            for fd in message.fds:
                os.close(fd)
        self._fail(error)

    def _fail(self, error: Error) -> None:
        with contextlib.suppress(ChannelError):
            self.channel.say("failed", error=encode_error(error).decode())
        self._leave()

    def _leave(self) -> None:
        mount, self._mount = self._mount, None
        if mount is not None and mount.record is None:
            self._supervisor.part_with_half_made(mount)
        elif mount is None and self._spec is not None:
            self._supervisor.tell_worker("drop", number=self.number)
        self._supervisor.part_with(self)


def abandon(mount: KeptMount) -> None:
    """End the FUSE connection of a mount, so that its readers get errors and its server ends."""
    from lamina.linux.fuse_device import abort_connection

    if mount.connection and os.geteuid() == 0:
        with contextlib.suppress(Error, OSError):
            abort_connection(mount.connection, mount.fds["device"])
