"""The service as a program: begin anew, as a successor, or with what the service manager kept."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from lamina.errors import Error, FormatError, UnsupportedError, UsageError
from lamina.linux.process import raise_file_limit
from lamina.serve.devices import device_names, find_device
from lamina.serve.error_wire import ReportedError
from lamina.serve.mounting_lock import try_lock
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service import old_wire
from lamina.serve.service.channel import Channel, ChannelError, OldWireError
from lamina.serve.service.handover import MountDescription
from lamina.serve.service.messages import (
    PROTOCOL,
    Failed,
    Hello,
    Keep,
    Message,
    Noted,
    Ready,
    Succeed,
    UnknownMessageError,
)
from lamina.serve.service.state import LOCK_NAME, LOG_NAME, SOCKET_NAME, ServiceState
from lamina.serve.service.systemd_fdstore import stored_mounts

LOG: Final = logging.getLogger("lamina")
SUCCESSION_S: Final = 1.0
BACKLOG: Final = 128

NEEDED_LATER: Final = (
    "lamina.opening.open_image",
    "lamina.content.residency",
    "lamina.registry.client",
    "lamina.registry.layout",
    "lamina.http.tls",
    "http.client",
    "email.utils",
    "concurrent.futures.thread",
    "lamina.source.fetcher",
    "lamina.store.node",
    "lamina.opening.start_stream",
    "lamina.serve.fuse_tree",
    "lamina.serve.service.standby",
    "lamina.serve.service.worker",
    "lamina.serve.service.mount_watcher",
    "lamina.serve.service.upgrade",
    "zstandard",
    "blake3",
    "ssl",
    "encodings.idna",
)
"""Imported before the first fork, so that no replacement has to."""


def open_lock() -> int:
    """Return the descriptor of the lock that holder and supervisor share while they live."""
    return os.open(state_directory() / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def listen() -> socket.socket:
    """Return the socket for clients; the lock must be held."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(state_directory(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By descriptor, since the address of a socket has at most 107 bytes.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=folder)
        listener.bind(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        listener.listen(BACKLOG)
        listener.setblocking(False)
    finally:
        os.close(folder)
    return listener


def import_all() -> None:
    """Import what a replacement would, and keep the collector from writing to shared memory."""
    for name in NEEDED_LATER:
        importlib.import_module(name)
    for name in device_names():
        find_device(name)
    gc.collect()
    gc.freeze()


def begin(ready_fd: int | None, *, lingering: bool) -> ServiceState | None:
    """Return the state of a new service, None if there is one already."""
    lock = open_lock()
    if not try_lock(lock):
        os.close(lock)
        return None
    state = ServiceState(listen(), lock, lingering)
    import_all()
    if ready_fd is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(ready_fd, b"ready")
        os.close(ready_fd)
    return state


def succeed(fd: int) -> ServiceState | None:
    """Take everything from the supervisor at the other end of ``fd`` and wait for its end."""
    channel = Channel(socket.socket(fileno=fd))
    successor = _Successor()
    try:
        _take_all(channel, successor)
    except Error as error:
        LOG.error("the successor ends: %s", error)  # noqa: TRY400 - one clear line
        with contextlib.suppress(OSError, ChannelError):
            channel.tell(Failed(error=ReportedError.of(error)))
        return None
    channel.close()
    state = successor.state
    # Whoever has the lock is the service: the old holder, if the old supervisor was killed.
    if state is None or not try_lock(state.lock_fd, SUCCESSION_S):
        return None
    state.end_worker()
    return state


class _Successor:
    """What a successor has been told so far."""

    def __init__(self) -> None:
        self.state: ServiceState | None = None

    def begin(self, lingering: bool, fds: list[int]) -> None:
        self.state = ServiceState(socket.socket(fileno=fds[0]), open_lock(), lingering)
        self.state.note_worker(fds[1])

    def keep(self, mount: MountDescription, fds: list[int]) -> None:
        if self.state is None:
            raise FormatError("a mount comes before the service that it is of")
        self.state.keep(mount, fds)


def _take_all(channel: Channel, successor: _Successor) -> None:
    """Note what the old supervisor says until it ends."""
    try:
        while (received := channel.receive()) is not None:
            channel.tell(_answer(successor, *received))
    except OldWireError as error:
        steps: dict[str, Callable[[dict[str, Any], list[int]], None]] = {
            "state": lambda fields, fds: successor.begin(fields["lingering"], fds),
            "keep": lambda fields, fds: successor.keep(
                old_wire.describe_mount(fields["mount"]), fds
            ),
            "ready?": lambda _fields, _fds: import_all(),
        }
        old_wire.take_over(channel, error.packet, error.fds, steps)


def _answer(successor: _Successor, message: Message, fds: list[int]) -> Message:
    match message:
        case Hello(protocol=protocol, version=version):
            if protocol > PROTOCOL:
                raise UnsupportedError(f"the service that runs is of a newer lamina ({version})")
            return Hello()
        case Succeed(lingering=lingering):
            successor.begin(lingering, fds)
        case Keep(mount=mount):
            successor.keep(mount, fds)
        case Ready():
            import_all()
        case _:
            raise UnknownMessageError(
                f"a successor does not know {message.__struct_config__.tag!r}"
            )
    return Noted()


def prepare_process() -> None:
    """Have a log, and no other ties to who started this."""
    os.chdir("/")
    os.umask(0o077)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    LOG.handlers = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    raise_file_limit()


def open_log() -> int:
    """Return the descriptor of the service's log, which is begun anew."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    return os.open(state_directory() / LOG_NAME, flags, 0o600)


def main(arguments: Sequence[str]) -> None:
    """``--background FD`` forks and tells FD when clients can come; ``--successor FD`` takes over;
    ``--restored FD`` goes on with what a worker has left; without arguments it is a service in the
    foreground, which stays without mounts.
    """
    from lamina.serve.service.standby import stand_by
    from lamina.serve.service.state import run_roles

    # Who starts it may hold signals back, and it is told to end by one.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    prepare_process()
    state: ServiceState | None
    if not arguments:
        given = stored_mounts(os.environ, os.getpid())
        state = begin(None, lingering=True)
        if state is not None:
            state.mounts = {mount.number: mount for mount in given}
    elif arguments[0] == "--background":
        if os.fork():
            os._exit(0)
        state = begin(int(arguments[1]), lingering=False)
    elif arguments[0] == "--successor":
        state = succeed(int(arguments[1]))
    elif arguments[0] == "--restored":
        from lamina.serve.service.orphan_recovery import read_state

        state = read_state(int(arguments[1]))
        import_all()
    else:
        raise UsageError(f"the mount service does not know {arguments[0]!r}")
    if state is not None:
        run_roles(lambda: stand_by(state))
