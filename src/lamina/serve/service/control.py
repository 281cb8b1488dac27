"""What an administrator does to the mount service as a whole: ask how it is, and end it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final, NamedTuple

from lamina.errors import KernelError, UsageError
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service.client import service_status
from lamina.serve.service.state import SOCKET_NAME, wait_for_end

STOP_S: Final = 20.0
"""How long a service may take to unmount everything and end."""


class ServiceFacts(NamedTuple):
    """A service that runs: ``pids`` by role, how many mounts it serves, its socket, its log (None
    if that is no file) and whether a service manager keeps it.
    """

    pids: dict[str, int]
    mounts: int
    socket: str
    log: str | None
    managed: bool


def service_facts() -> ServiceFacts | None:
    """Return how the service is, None if none runs.  Raises KernelError if it does not answer."""
    status = service_status()
    if status is None:
        return None
    pid = status.pids["supervisor"]
    return ServiceFacts(
        status.pids,
        len(status.mounts),
        str(state_directory() / SOCKET_NAME),
        _log_of(pid),
        _is_managed(pid),
    )


def stop_service() -> int | None:
    """Let the service unmount everything and end; return how many mounts it had, None if none runs.

    Readers of a mount in use get errors from then on.  Raises UsageError if a service manager keeps
    the service, and KernelError if it does not end.
    """
    deadline = time.monotonic() + STOP_S
    facts = service_facts()
    if facts is None:
        return None
    if facts.managed:
        raise UsageError(
            "a service manager keeps the mount service, and would start it again",
            hint="`systemctl stop lamina` ends it, `lamina umount --all` its mounts",
        )
    with contextlib.ExitStack() as stack:
        ends = {}
        for role in ("supervisor", "holder", "worker"):
            with contextlib.suppress(ProcessLookupError):
                ends[role] = os.pidfd_open(facts.pids[role])
                stack.callback(os.close, ends[role])
        if "supervisor" in ends:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(ends["supervisor"], signal.SIGTERM)
        for role, end in ends.items():
            if not wait_for_end(end, max(0.0, deadline - time.monotonic())):
                raise KernelError(
                    f"the {role} of the mount service (process {facts.pids[role]}) does not end"
                )
    return facts.mounts


def _log_of(pid: int) -> str | None:
    """Return the file that a process of ours writes its errors to, if it is one."""
    try:
        path = os.readlink(f"/proc/{pid}/fd/2")
    except OSError:
        return None
    return path if path.startswith("/") else None


def _is_managed(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return any(word.startswith(b"NOTIFY_SOCKET=") for word in words)
