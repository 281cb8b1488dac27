"""What the runtime says of its containers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import Any, Final, NamedTuple

from lamina.errors import KernelError, NotFoundError
from lamina.serve.runtime import Runtime

RUNNING: Final = "running"
PAUSED: Final = "paused"
GONE: Final = "gone"


class RuntimeState(NamedTuple):
    """``status`` is that of the OCI runtime specification, or ``gone``; ``pid`` 0 if none runs."""

    status: str
    pid: int


def runtime_state(runtime: Runtime, name: str) -> RuntimeState:
    """Return how a container is; ``gone`` if the runtime knows it no more."""
    done = _call(runtime, "state", name)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found: dict[str, Any] = json.loads(done.stdout)
        return RuntimeState(str(found["status"]), int(found["pid"]))
    return RuntimeState(GONE, 0)


def running_fd(runtime: Runtime, name: str) -> int | None:
    """Return a pidfd of a container's first process; None if it runs no more."""
    state = runtime_state(runtime, name)
    if not state.pid:
        return None
    try:
        fd = os.pidfd_open(state.pid)
    except OSError:
        return None
    # The pid may have been another's by the time it was opened.
    if runtime_state(runtime, name).pid == state.pid:
        return fd
    os.close(fd)
    return None


def send_signal(runtime: Runtime, name: str, number: str) -> None:
    """Send a signal, by name or number, to a container's first process.

    Raises NotFoundError if it does not run, KernelError if the runtime refuses.
    """
    done = _call(runtime, "kill", name, number.removeprefix("SIG"))
    if done.returncode == 0:
        return
    if runtime_state(runtime, name).status in (GONE, "stopped"):
        raise NotFoundError(f"the container {name!r} does not run", hint="`lamina ps` lists them")
    raise KernelError(f"cannot send {number} to {name!r}: {done.stderr.strip()[-300:]}")


def resume(runtime: Runtime, name: str) -> None:
    """Have a container go on if somebody has paused it."""
    if runtime_state(runtime, name).status == PAUSED:
        _call(runtime, "resume", name)


def _call(runtime: Runtime, *words: str) -> subprocess.CompletedProcess[str]:
    command = [runtime.program, "--root", runtime.root, *words]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
