"""When a worker is all that is left: it serves on, and has a new service begin beside it."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Final

from lamina.serve.service.kept import KeptMount
from lamina.serve.service.start import open_lock, try_lock
from lamina.serve.service.state import ServiceState

LOG: Final = logging.getLogger("lamina")
LOOK_S: Final = 0.01
RETRY_S: Final = 1.0

UNKNOWN_S: Final = 2.0
"""How long a worker of which nobody may know waits for others: longer than a holder needs to fork a
supervisor, which has another worker.
"""


def outlive(state: ServiceState, kept: dict[str, KeptMount], *, known: bool) -> None:
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
            [sys.executable, "-m", "lamina.serve.service", "--restored", str(description)],
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


def write_state(state: ServiceState) -> int:
    """Return a descriptor, of memory, with what :func:`read_state` reads."""
    document = {
        "listener": state.listener.fileno(),
        "lock": state.lock_fd,
        "worker": state.worker_pidfd,
        "lingering": state.lingering,
        "mounts": [
            {"mount": mount.encode(), "fds": list(mount.fds.values())}
            for mount in state.mounts.values()
        ],
    }
    fd = os.memfd_create("lamina-service", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(document).encode())
    return fd


def read_state(fd: int) -> ServiceState:
    """Return the state that another process wrote, whose descriptors this one has inherited."""
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb") as file:
        document = json.loads(file.read())
    state = ServiceState(
        socket.socket(fileno=document["listener"]), document["lock"], document["lingering"]
    )
    state.worker_pidfd = document["worker"]
    for each in document["mounts"]:
        state.keep(each["mount"], each["fds"])
    for inherited in _descriptors(state):
        os.set_inheritable(inherited, False)
    return state
