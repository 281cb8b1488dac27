"""The service as a program: begin anew, as a successor, or with what the service manager kept."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from lamina.errors import UsageError
from lamina.linux.process import raise_file_limit
from lamina.serve.service.channel import Channel, ChannelError
from lamina.serve.service.manager import stored_mounts
from lamina.serve.service.state import LOCK_NAME, LOG_NAME, SOCKET_NAME, ServiceState
from lamina.serve.state import state_directory

LOG: Final = logging.getLogger("lamina")
SUCCESSION_S: Final = 1.0
BACKLOG: Final = 128

NEEDED_LATER: Final = (
    "lamina.image.open",
    "lamina.image.residency",
    "lamina.registry.client",
    "lamina.registry.layout",
    "lamina.registry.tls",
    "http.client",
    "email.utils",
    "concurrent.futures.thread",
    "lamina.fetch.fetcher",
    "lamina.store.node",
    "lamina.serve.fuse_tree",
    "lamina.serve.service.holder",
    "lamina.serve.service.worker",
    "lamina.serve.service.ending",
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


def try_lock(fd: int, deadline_s: float = 0.0) -> bool:
    """Take the lock, or return False if another service has it all the while."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        else:
            return True


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
    try:
        state = _take_all(channel)
    except ChannelError as error:
        LOG.error("the successor ends: %s", error)  # noqa: TRY400 - one clear line
        return None
    channel.close()
    # Whoever has the lock is the service: the old holder, if the old supervisor was killed.
    if state is None or not try_lock(state.lock_fd, SUCCESSION_S):
        return None
    state.end_worker()
    return state


def _take_all(channel: Channel) -> ServiceState | None:
    """Note what the old supervisor says until it ends."""
    state: ServiceState | None = None
    while (message := channel.receive()) is not None:
        if message.body["op"] == "state":
            listener = socket.socket(fileno=message.fds[0])
            state = ServiceState(listener, open_lock(), message.body["lingering"])
            state.note_worker(message.fds[1])
        elif message.body["op"] == "keep" and state is not None:
            state.keep(message.body["mount"], message.fds)
        elif message.body["op"] == "ready?":
            import_all()
        channel.say("noted")
    return state


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
    from lamina.serve.service.holder import hold
    from lamina.serve.service.state import live

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
        from lamina.serve.service.last import read_state

        state = read_state(int(arguments[1]))
        import_all()
    else:
        raise UsageError(f"the mount service does not know {arguments[0]!r}")
    if state is not None:
        live(lambda: hold(state))
