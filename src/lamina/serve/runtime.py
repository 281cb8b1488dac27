"""An OCI runtime as a child process: found, started in the foreground, signalled, and its exit
understood.

runc and crun take the same arguments.  In the foreground they carry signals, terminal and exit
status of the container themselves; this module carries them between the caller and the runtime, and
tells a command that could not be started (126, 127) from one that ran and failed, as docker does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import Final, NamedTuple

from lamina.errors import KernelError, UnsupportedError

RUNTIMES: Final = ("runc", "crun")
ADMIN_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

RUNTIME_FAILED: Final = 125
CANNOT_INVOKE: Final = 126
NOT_FOUND: Final = 127

_NOT_FORWARDED: Final = (
    # cannot be caught
    *("SIGKILL", "SIGSTOP"),
    # faults of this process itself
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"),
    *("SIGPIPE", "SIGXCPU", "SIGXFSZ"),
    # job control of the shell, and noise that runtimes make for themselves
    *("SIGCHLD", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGURG", "SIGPROF", "SIGVTALRM"),
)
# What runc and crun say of a command that they cannot start.
_NOT_FOUND_WORDS: Final = ("executable file not found", "no such file or directory")
_CANNOT_INVOKE_WORDS: Final = (
    "permission denied",
    "exec format error",
    "is a directory",
    "open executable: operation not permitted",
)
_SI_KERNEL: Final = 0x80
_LOOK_S: Final = 1.0
_DEFAULTS: Final = (signal.SIGPIPE, signal.SIGXFSZ)


class Runtime(NamedTuple):
    """A runtime program and the folder where it keeps the state of its containers."""

    program: str
    root: str

    def command(self, log: str, *words: str) -> list[str]:
        """A command line of the runtime."""
        return [self.program, "--root", self.root, "--log", log, "--log-format", "json", *words]


class Outcome(NamedTuple):
    """How a run ended: the exit code for our caller and, if the runtime itself failed, what it
    said.
    """

    exit_code: int
    failure: str = ""


def find_runtime(wanted: str | None, root: str) -> Runtime:
    """The runtime of that name or path, else the first of runc and crun.  Raises
    UnsupportedError.
    """
    path = f"{os.environ.get('PATH', '')}:{ADMIN_PATH}"
    for name in (wanted,) if wanted else RUNTIMES:
        program = shutil.which(name, path=path)
        if program is not None:
            return Runtime(os.path.abspath(program), root)
    names = wanted or " nor ".join(RUNTIMES)
    raise UnsupportedError(
        f"there is no container runtime {names} on this machine",
        hint="install runc or crun, or name one with --runtime",
    )


def forwarded_signals() -> set[signal.Signals]:
    """The signals that a container should get when this process gets them."""
    mine = {getattr(signal, name) for name in _NOT_FORWARDED}
    return {number for number in signal.Signals if number not in mine}


def run_foreground(
    runtime: Runtime, bundle: str, container_id: str, *, interactive: bool, server_pid: int
) -> Outcome:
    """Run a bundle to its end, with this process's standard streams; forward signals; return how it
    ended.

    Without ``interactive`` the container's standard input is empty.  The process ``server_pid``
    serves the container's files: should it end first, the runtime is killed
    and KernelError raised.  This process must
    have one thread.
    """
    log = os.path.join(bundle, "runtime.log")
    command = runtime.command(log, "run", "--bundle", bundle, container_id)
    watched = forwarded_signals() | {signal.SIGCHLD}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        pid, own_group = _spawn(command, interactive)
        status = _wait(pid, server_pid, watched, own_group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    if status is None:
        raise KernelError(
            "the server of the image ended while the container ran, so the container was killed",
            hint="look for the out-of-memory killer in the kernel's log",
        )
    code = os.waitstatus_to_exitcode(status)
    code = 128 - code if code < 0 else code
    return _understood(code, log) if code else Outcome(0)


def _spawn(command: list[str], interactive: bool) -> tuple[int, bool]:
    """Start the runtime; also tell whether it is in a process group of its own.

    On a terminal it must stay in the foreground group, which gets the terminal's signals as a
    whole.
    """
    own_group = not any(os.isatty(fd) for fd in range(3))
    actions = [] if interactive else [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    mask: list[int] = []
    if own_group:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=actions,
            setpgroup=0,
            setsigmask=mask,
            setsigdef=_DEFAULTS,
        )
    else:
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=actions,
            setsigmask=mask,
            setsigdef=_DEFAULTS,
        )
    return pid, own_group


def _wait(pid: int, server_pid: int, watched: set[signal.Signals], own_group: bool) -> int | None:
    """Wait for the runtime's end and return its wait status, or None if the server ended before
    it.
    """
    server_ended = False
    while True:
        # With a time limit, because a thread that does not block SIGCHLD may have got it.
        info = signal.sigtimedwait(watched, _LOOK_S)
        if info is not None and info.si_signo != signal.SIGCHLD:
            # What the terminal sends, the runtime got as well, being in the same group.
            if own_group or info.si_code != _SI_KERNEL:
                os.kill(pid, info.si_signo)
            continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return None if server_ended else status
        if not server_ended and _has_ended(server_pid):
            server_ended = True
            os.kill(pid, signal.SIGKILL)


def _has_ended(pid: int) -> bool:
    """Whether a child is a zombie, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _understood(code: int, log: str) -> Outcome:
    """Tell the runtime's own failure from the container's exit status by the runtime's log."""
    message = _logged_error(log)
    if not message:
        return Outcome(code)
    text = message.lower()
    if any(words in text for words in _NOT_FOUND_WORDS):
        return Outcome(NOT_FOUND, message)
    if any(words in text for words in _CANNOT_INVOKE_WORDS):
        return Outcome(CANNOT_INVOKE, message)
    return Outcome(RUNTIME_FAILED, message)


def _logged_error(log: str) -> str:
    try:
        with open(log, errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", ""))
    return ""


def remove_container(runtime: Runtime, bundle: str, container_id: str) -> None:
    """Kill a container and forget it; one that is not there is fine."""
    log = os.path.join(bundle, "removal.log")
    command = runtime.command(log, "delete", "--force", container_id)
    null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    pid = os.posix_spawn(
        command[0], command, os.environ, file_actions=null, setsigmask=(), setsigdef=_DEFAULTS
    )
    os.waitpid(pid, 0)
