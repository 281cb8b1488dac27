"""What the processes of the service have in common, and how one becomes another."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from lamina.linux.memory import forbid_core_dumps
from lamina.serve.service.handover import MountDescription, MountHandover

SOCKET_NAME: Final = "service.sock"
LOCK_NAME: Final = "service.lock"
LOG_NAME: Final = "service.log"


@dataclass(slots=True)
class ServiceState:
    """Inherited by every fork.  ``lingering`` is a service that stays without mounts."""

    listener: socket.socket
    lock_fd: int
    lingering: bool = False
    mounts: dict[str, MountHandover] = field(default_factory=dict)
    worker_pidfd: int = -1
    worker_pid: int = 0
    holder_pid: int = 0
    supervisor_pid: int = 0

    def note_worker(self, pidfd: int) -> None:
        """Remember the process that answers now."""
        if self.worker_pidfd >= 0:
            os.close(self.worker_pidfd)
        self.worker_pidfd = pidfd

    def end_worker(self) -> None:
        """Kill the worker and wait until it is gone with all its threads: only then may another
        one read what it has read.
        """
        if self.worker_pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.worker_pidfd, signal.SIGKILL)
            wait_for_end(self.worker_pidfd)
            self.note_worker(-1)

    def keep(self, description: MountDescription, fds: list[int]) -> None:
        """Keep a mount, or what has changed of it if no descriptors come with it."""
        known = self.mounts.get(description.number)
        if known is not None and not fds:
            fds = list(known.fds.values())
        mount = MountHandover.of(description, fds)
        if mount.spec.image.has_secrets:
            forbid_core_dumps()
        self.mounts[mount.number] = mount

    def drop(self, number: str) -> None:
        """Let go of a mount."""
        known = self.mounts.pop(number, None)
        if known is not None:
            known.close()


class RoleChange(BaseException):
    """Raised in a new fork: leave everything on the stack and begin as another process."""

    def __init__(self, role: Callable[[], None]) -> None:
        super().__init__()
        self.role = role


def wait_for_end(pidfd: int, timeout_s: float | None = None) -> bool:
    """Wait until a process is gone; return whether it is."""
    # Not select(2), which takes no descriptor beyond 1023: a service of many mounts has such.
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def fork_role(role: Callable[[], None]) -> int:
    """Fork; the child leaves all frames, which close what they own, and begins with ``role``.

    So no stack grows from generation to generation.  Needs :func:`run_roles` at the bottom.
    """
    pid = os.fork()
    if pid == 0:
        raise RoleChange(role)
    return pid


def run_roles(role: Callable[[], None]) -> NoReturn:
    """Run ``role``, and in forks what they are to become; never returns."""
    import logging

    log = logging.getLogger("lamina")
    current: Callable[[], None] | None = role
    code = 0
    while current is not None:
        role, current = current, None
        try:
            role()
        except RoleChange as change:
            current = change.role
        except BaseException:
            log.exception("a process of the mount service ended because of a defect")
            code = 1
    logging.shutdown()
    os._exit(code)
