"""When a worker is all that is left: it serves on, and has a new service begin beside it."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import time
from typing import Final

import msgspec

from lamina.errors import FormatError
from lamina.serve.mounting_lock import try_lock
from lamina.serve.service import old_wire
from lamina.serve.service.handover import MountDescription, MountHandover
from lamina.serve.service.messages import PROTOCOL
from lamina.serve.service.program import service_command
from lamina.serve.service.start import open_lock
from lamina.serve.service.state import ServiceState

LOG: Final = logging.getLogger("lamina")
LOOK_S: Final = 0.01
RETRY_S: Final = 1.0

UNKNOWN_S: Final = 2.0
"""How long a worker of which nobody may know waits for others: longer than a holder needs to fork a
supervisor, which has another worker.
"""


def recover_service(state: ServiceState, kept: dict[str, MountHandover], *, known: bool) -> None:
    """Wait to be killed by a new supervisor; if there is no holder that forks one, start a holder.

    The lock of the service tells: holder and supervisor share it.  Other threads serve meanwhile.
    A worker that is not ``known`` to the holder, and so is not killed, returns after a while.
    """
    give_up = math.inf if known else time.monotonic() + UNKNOWN_S
    state.lock_fd = open_lock()
    while not try_lock(state.lock_fd):
        if time.monotonic() > give_up:
            return
        time.sleep(LOOK_S)
    LOG.warning("supervisor and holder are gone, others take their place")
    state.mounts = dict(kept)
    state.note_worker(os.pidfd_open(os.getpid()))
    while not _start_holder(state):
        time.sleep(RETRY_S)
    os.close(state.lock_fd)
    while True:
        signal.pause()


def _start_holder(state: ServiceState) -> bool:
    """Start a holder that has all descriptors, and the lock, from its first moment on.

    It is no fork that goes on: a fork of a process with threads has whatever they have locked, and
    nobody who unlocks it.
    """
    description = write_state(state)
    try:
        holder = subprocess.Popen(
            service_command("--restored", description),
            stdin=subprocess.DEVNULL,
            pass_fds=(description, *_descriptors(state)),
        )
    except OSError:
        LOG.exception("a new holder of the mount service does not start")
        return False
    finally:
        os.close(description)
    # It is to live on; nobody waits for it here.
    holder.returncode = 0
    return True


def _descriptors(state: ServiceState) -> list[int]:
    found = [state.listener.fileno(), state.lock_fd, state.worker_pidfd]
    for mount in state.mounts.values():
        found += mount.fds.values()
    return found


class SavedMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount, and the numbers of its descriptors."""

    mount: MountDescription
    fds: tuple[int, ...]


class SavedState(msgspec.Struct, frozen=True, kw_only=True):
    """A :class:`ServiceState`; the program that is started may be of a later version."""

    version: int = PROTOCOL
    listener: int
    lock: int
    worker: int
    lingering: bool
    mounts: tuple[SavedMount, ...]


def write_state(state: ServiceState) -> int:
    """Return a descriptor, of memory, with what :func:`read_state` reads."""
    saved = SavedState(
        listener=state.listener.fileno(),
        lock=state.lock_fd,
        worker=state.worker_pidfd,
        lingering=state.lingering,
        mounts=tuple(
            SavedMount(mount=mount.describe(), fds=tuple(mount.fds.values()))
            for mount in state.mounts.values()
        ),
    )
    fd = os.memfd_create("lamina-service", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(msgspec.to_builtins(saved)).encode())
    return fd


def read_state(fd: int) -> ServiceState:
    """Return the state that another process wrote, whose descriptors this one has inherited.

    Raises FormatError if that was of a newer version.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb") as file:
        document = json.loads(file.read())
    if "version" not in document:
        document = old_wire.convert_state(document)
    try:
        saved = msgspec.convert(document, SavedState)
    except msgspec.ValidationError as error:
        raise FormatError(f"this is no state of the mount service: {error}") from error
    if saved.version > PROTOCOL:
        raise FormatError("the mount service that is to be restored was of a newer lamina")
    state = ServiceState(socket.socket(fileno=saved.listener), saved.lock, saved.lingering)
    state.worker_pidfd = saved.worker
    for each in saved.mounts:
        state.keep(each.mount, list(each.fds))
    for inherited in _descriptors(state):
        os.set_inheritable(inherited, False)
    return state
