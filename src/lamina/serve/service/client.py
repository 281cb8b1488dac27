"""Talking to the mount service, which is started when it is needed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from lamina.errors import KernelError
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service import old_wire
from lamina.serve.service.channel import Channel, OldWireError, close_all
from lamina.serve.service.messages import (
    PROTOCOL,
    Coverage,
    Failed,
    Hello,
    Message,
    Status,
    StatusPage,
    Upgrade,
)
from lamina.serve.service.program import service_command
from lamina.serve.service.start import open_log
from lamina.serve.service.state import LOG_NAME, SOCKET_NAME

START_DEADLINE_S: Final = 20.0
STATUS_S: Final = 10.0
_RETRY_S: Final = 0.01
_MOST_STARTS: Final = 3

Answer = TypeVar("Answer", bound=Message)


class OtherVersionError(KernelError):
    """The service that runs is older or newer than this code."""

    @classmethod
    def of(cls, hello: Hello) -> OtherVersionError:
        """Return it for a service that has said this hello."""
        if hello.protocol < PROTOCOL:
            return cls(
                f"the mount service that runs is of an older lamina ({hello.version})",
                hint="`lamina service upgrade` replaces it, and its mounts go on",
            )
        return cls(
            f"the mount service that runs is of a newer lamina ({hello.version})",
            hint="use that one, or end the service with its `lamina umount --all`",
        )


class ServiceGoneError(KernelError):
    """The supervisor ended in the middle of a request: ask the next one."""


def open_connection() -> Channel | None:
    """Return a connection to the service on which nothing was said, None if there is none."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(state_directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
    except (FileNotFoundError, ConnectionRefusedError):
        end.close()
        return None
    finally:
        os.close(folder)
    return Channel(end)


def connect(timeout_s: float = START_DEADLINE_S) -> Channel | None:
    """Return a connection to the service, None if there is none.

    Raises OtherVersionError, and KernelError if it does not answer in time.
    """
    found = _meet(timeout_s)
    if found is None:
        return None
    channel, hello = found
    if hello.protocol != PROTOCOL:
        channel.close()
        raise OtherVersionError.of(hello)
    return channel


def _meet(timeout_s: float) -> tuple[Channel, Hello] | None:
    """Return a connection on which both ends have said hello; of an old service, protocol 1."""
    deadline = time.monotonic() + timeout_s
    while (channel := open_connection()) is not None:
        try:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            hello = _greet(channel)
            channel.settimeout(None)
        except TimeoutError as error:
            channel.close()
            raise KernelError("the mount service does not answer") from error
        except BaseException:
            channel.close()
            raise
        if hello is not None:
            return channel, hello
        # The supervisor has ended; the next one is on its way.
        channel.close()
        time.sleep(_RETRY_S)
    return None


def _greet(channel: Channel) -> Hello | None:
    """Say hello; None if the other end is gone."""
    try:
        received = channel.ask(Hello())
    except OldWireError as error:
        close_all(error.fds)
        return Hello(protocol=1, version="0.1")
    if received is None:
        return None
    close_all(received.fds)
    if not isinstance(received.message, Hello):
        raise KernelError("what listens in the runtime folder is no mount service")
    return received.message


def connect_or_start() -> Channel:
    """Return a connection to the service, which is started if there is none.

    Raises KernelError if it does not start.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    starts = 0
    while (channel := connect()) is None:
        starts += _start()
        if starts > _MOST_STARTS or time.monotonic() > deadline:
            log = state_directory() / LOG_NAME
            raise KernelError("the mount service does not start", hint=f"its log is {log}")
        time.sleep(_RETRY_S)
    return channel


def _start() -> bool:
    """Start a service; False if it ends at once, as it does beside another one."""
    read_end, write_end = os.pipe()
    log = open_log()
    command = service_command("--background", write_end)
    # The service manager of who starts it is not its own: it keeps nothing of it.
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    try:
        subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write_end,),
            start_new_session=True,
            check=False,
        )
    finally:
        os.close(log)
        os.close(write_end)
    with open(read_end, "rb") as pipe:
        return pipe.read() == b"ready"


def expect(channel: Channel, kind: type[Answer]) -> Answer:
    """Wait for a message and return it.  Raises what the service reports, or ServiceGoneError."""
    received = channel.receive()
    if received is None:
        raise ServiceGoneError("the mount service ended before it answered")
    message = received.message
    close_all(received.fds)
    if isinstance(message, Failed):
        raise message.error.to_error()
    if not isinstance(message, kind):
        tag = message.__struct_config__.tag
        raise KernelError(f"the mount service answered {tag!r} out of turn")
    return message


def request(channel: Channel, message: Message, fds: Sequence[int] = ()) -> None:
    """Say what is to be answered.  Raises ServiceGoneError."""
    if not channel.tell(message, fds):
        raise ServiceGoneError("the mount service ended before it took a request")


class ServiceStatus(NamedTuple):
    """``pids`` by role, and what is known of ``mounts`` by folder."""

    pids: dict[str, int]
    mounts: dict[str, Coverage]


def service_status(mountpoints: Sequence[str] | None = None) -> ServiceStatus | None:
    """Return what the service tells of all mounts, or of those on some folders; None if no service
    runs.  Raises KernelError if it does not answer.
    """
    deadline = time.monotonic() + STATUS_S
    try:
        while (channel := connect(STATUS_S)) is not None:
            with contextlib.closing(channel), contextlib.suppress(ServiceGoneError):
                channel.settimeout(STATUS_S)
                return _all_pages(channel, mountpoints)
            if time.monotonic() > deadline:
                break
            time.sleep(_RETRY_S)
    except TimeoutError as error:
        raise KernelError("the mount service does not answer") from error
    return None


def _all_pages(channel: Channel, mountpoints: Sequence[str] | None) -> ServiceStatus:
    wanted = None if mountpoints is None else tuple(mountpoints)
    found: dict[str, Coverage] = {}
    after = ""
    while True:
        request(channel, Status(mountpoints=wanted, after=after))
        page = expect(channel, StatusPage)
        found |= page.mounts
        if not page.more:
            return ServiceStatus(page.pids, found)
        after = max(page.mounts)


def upgrade_service() -> bool:
    """Replace the service by one of the code as it is now, which answers then; False if there is
    none.

    Raises KernelError if the new one does not start; then the old one goes on.
    """
    found = _meet(START_DEADLINE_S)
    if found is None:
        return False
    channel, hello = found
    with contextlib.closing(channel):
        if hello.protocol > PROTOCOL:
            raise OtherVersionError.of(hello)
        upgraded = _ask_old_service() if hello.protocol == 1 else channel.ask(Upgrade()) is None
    # The old supervisor ends without an answer, which is the answer.
    if not upgraded:
        raise KernelError(
            "the new mount service does not start, so the old one goes on",
            hint=f"see {state_directory() / LOG_NAME}",
        )
    # Before that the successor has told a service manager who it is, which else takes the end of
    # the old one, once what reloads it has ended too, for the end of all.
    found = _meet(START_DEADLINE_S)
    if found is not None:
        found[0].close()
    return True


def _ask_old_service() -> bool:
    # It has closed the connection that began with a hello.
    channel = open_connection()
    if channel is None:
        return True
    with contextlib.closing(channel):
        return old_wire.ask_for_upgrade(channel)
