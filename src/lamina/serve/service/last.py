"""When a worker is all that is left: it serves on, and has a new service begin beside it."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import signal
import time
from functools import partial
from typing import Final

from lamina.serve.service.kept import KeptMount
from lamina.serve.service.start import open_lock, try_lock
from lamina.serve.service.state import ServiceState, fork_as

LOG: Final = logging.getLogger("lamina")
LOOK_S: Final = 0.01


UNKNOWN_S: Final = 2.0
"""How long a worker of which nobody may know waits for others: longer than a holder needs to fork a
supervisor, which has another worker.
"""


def outlive(state: ServiceState, kept: dict[str, KeptMount], *, known: bool) -> None:
    """Wait to be killed by a new supervisor; if there is no holder that forks one, fork a holder.

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
    state.worker_pidfd = -1
    fork_as(partial(_begin_again, state, os.getpid()))
    os.close(state.lock_fd)
    while True:
        signal.pause()


def _begin_again(state: ServiceState, worker: int) -> None:
    """In a fork of a process with threads: keep nothing of it but the state."""
    from lamina.serve.service.holder import hold

    gc.collect()
    _close_all_but(state)
    if os.getppid() == worker:
        state.note_worker(os.pidfd_open(worker))
    hold(state)


def _close_all_but(state: ServiceState) -> None:
    kept = {0, 1, 2, state.listener.fileno(), state.lock_fd}
    for mount in state.mounts.values():
        kept.update(mount.fds.values())
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))
