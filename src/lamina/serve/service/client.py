"""Talking to the mount service, which is started when it is needed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from lamina.errors import KernelError
from lamina.serve.reported_error import decode_error
from lamina.serve.service.channel import Channel
from lamina.serve.service.start import open_log
from lamina.serve.service.state import LOG_NAME, SOCKET_NAME
from lamina.serve.state import state_directory

START_DEADLINE_S: Final = 20.0
STATUS_S: Final = 10.0
_RETRY_S: Final = 0.01
_MOST_STARTS: Final = 3


class ServiceGoneError(KernelError):
    """The supervisor ended in the middle of a request: ask the next one."""


def connect() -> Channel | None:
    """Return a connection to the service, None if there is none."""
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
    command = [sys.executable, "-m", "lamina.serve.service", "--background", str(write_end)]
    try:
        subprocess.run(
            command,
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


def expect(channel: Channel, op: str) -> dict[str, Any]:
    """Wait for ``op`` and return it.  Raises what the service reports, or ServiceGoneError."""
    message = channel.receive()
    if message is None:
        raise ServiceGoneError("the mount service ended before it answered")
    if message.body["op"] == "failed":
        raise decode_error(message.body["error"].encode())
    if message.body["op"] != op:
        raise KernelError(f"the mount service answered {message.body['op']!r} instead of {op!r}")
    return message.body


def ask(op: str, answer: str, **fields: Any) -> dict[str, Any] | None:
    """Return the answer of the service to a request, None if there is no service."""
    deadline = time.monotonic() + STATUS_S
    while (channel := connect()) is not None:
        with contextlib.closing(channel):
            channel.settimeout(STATUS_S)
            with contextlib.suppress(ServiceGoneError):
                if channel.say(op, **fields):
                    return expect(channel, answer)
        if time.monotonic() > deadline:
            break
        time.sleep(_RETRY_S)
    return None


def service_status(mountpoints: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Return ``pids`` by role, and ``mounts`` by folder, all or those named; None if no service
    runs.
    """
    try:
        return ask("status", "status", mountpoints=mountpoints)
    except TimeoutError as error:
        raise KernelError("the mount service does not answer") from error


def upgrade_service() -> bool:
    """Replace the service by one of the code as it is now; False if there is none.

    Raises KernelError if the new one does not start; then the old one goes on.
    """
    channel = connect()
    if channel is None:
        return False
    with contextlib.closing(channel):
        channel.say("upgrade")
        message = channel.receive()
    # The old supervisor ends without an answer, which is the answer.
    if message is not None:
        raise KernelError(
            "the new mount service does not start, so the old one goes on",
            hint=f"see {state_directory() / LOG_NAME}",
        )
    return True
