"""The process that serves one container's image: it lives as long as ``lamina run`` does, and
cleans up after it.

The caller forks it before it does anything else.  It opens the image, mounts it, writes the bundle
and reports over a socket; then it waits for the socket's other end to close.  A caller that was
killed closes it too, without a goodbye: then this process kills the container *before* it stops
serving, so that no program ever reads from a tree that nobody serves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from lamina.errors import Error
from lamina.serve.error_wire import encode_failure, read_report
from lamina.serve.service.state import wait_for_end

LOG: Final = logging.getLogger("lamina")
STOP_S: Final = 60.0
"""How long a server may take to unmount: what it has mounted is out of use by then."""
_GOODBYE: Final = b"q"


class Served(Protocol):
    """What the child serves; made, mounted and unmade in the child."""

    def start(self) -> dict[str, Any]:
        """Mount, and return what the caller should know (JSON).  Raises lamina.errors.Error."""

    def stop(self, *, orphaned: bool) -> None:
        """Unmount; ``orphaned`` if the caller is gone without a goodbye."""


@dataclass(slots=True)
class RunServer:
    """The caller's end: the child's pid and the socket to it."""

    pid: int
    channel: socket.socket
    is_apart: bool = False
    """Whether it mounts outside the caller's private mounts, and others serve what it mounts."""
    answered: bool = False

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the image is mounted and return what ``start`` returned.

        Raises the Error that the child met, or KernelError if the child ended without a word.
        """
        with self.channel.makefile("rb") as stream:
            line = stream.readline()
        self.answered = True
        report: dict[str, Any] = read_report(
            line, "the server of the image ended before the image was mounted"
        )
        return report

    def stop(self) -> None:
        """Say goodbye and wait until everything is unmounted; may be called again.

        A server that has not answered yet may wait for a registry: it is killed.  What it mounted
        is in a private namespace, so nothing of it is left.
        """
        if self.pid:
            if not self.answered:
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                self.channel.send(_GOODBYE)
            self.channel.close()
            _end(self.pid)
            self.pid = 0


def _end(pid: int) -> None:
    """Wait until the server has ended; our own child is killed if that takes too long.

    It may be the child of a process whose place this one has taken: what has its number may then
    be another process by now, and is left alone.
    """
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            has_ended = wait_for_end(fd, STOP_S)
        finally:
            os.close(fd)
        if not has_ended:
            LOG.error("process %d does not come to an end with its image", pid)
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def start_server(make: Callable[[], Served], *, is_apart: bool = False) -> RunServer:
    """Fork the server.  The process must have one thread."""
    mine, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        mine.close()
        _child(theirs, make)
    theirs.close()
    return RunServer(pid, mine, is_apart)


def _child(channel: socket.socket, make: Callable[[], Served]) -> NoReturn:
    code = 1
    try:
        _detach()
        _serve(channel, make())
        code = 0
    except Exception:  # noqa: BLE001 - the last frame of the process
        # The caller sees the socket close; this is for whoever looks for the cause.
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _detach() -> None:
    """Leave the terminal's process group, so that ^C is the container's business; keep only
    standard error.
    """
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.close(null)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def _serve(channel: socket.socket, served: Served) -> None:
    orphaned = False
    try:
        try:
            line = json.dumps(served.start()).encode()
        except Error as error:
            line = encode_failure(error)
        with contextlib.suppress(BrokenPipeError):
            channel.sendall(line + b"\n")
        orphaned = channel.recv(1) != _GOODBYE
    finally:
        served.stop(orphaned=orphaned)
