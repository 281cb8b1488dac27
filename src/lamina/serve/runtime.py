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
import time
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
        """Return a command line of the runtime."""
        return [self.program, "--root", self.root, "--log", log, "--log-format", "json", *words]


class Outcome(NamedTuple):
    """How a run ended: the exit code for our caller and, if the runtime itself failed, what it
    said.
    """

    exit_code: int
    failure: str = ""


def find_runtime(wanted: str | None, root: str) -> Runtime:
    """Return the runtime of that name or path, else the first of runc and crun.  Raises
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
    """Return the signals that a container should get when this process gets them."""
    mine = {getattr(signal, name) for name in _NOT_FORWARDED}
    return {number for number in signal.Signals if number not in mine}


def run_foreground(
    runtime: Runtime,
    bundle: str,
    container_id: str,
    *,
    interactive: bool,
    server_pid: int | None,
    stop_timeout_s: float | None = None,
) -> Outcome:
    """Run a bundle to its end, with this process's standard streams; forward signals; return how it
    ended.

    Without ``interactive`` the container's standard input is empty.  If a process ``server_pid``
    serves the container's files, and it ends first, the runtime is killed and KernelError raised.
    The container is killed *stop_timeout_s* after this process was told to end, if that is not
    None.  This process must have one thread.
    """
    log = os.path.join(bundle, "runtime.log")
    command = runtime.command(log, "run", "--bundle", bundle, container_id)
    end = None
    if stop_timeout_s is not None and stop_timeout_s >= 0:
        words = runtime.command(os.path.join(bundle, "kill.log"), "kill", container_id, "KILL")
        end = _EndAfter(stop_timeout_s, words)
    status = _run(command, interactive, server_pid, end)
    if status is None:
        raise KernelError(
            "the server of the image ended while the container ran, so the container was killed",
            hint="look for the out-of-memory killer in the kernel's log",
        )
    return _outcome(status, log)


def run_words(command: list[str], log: str, *, interactive: bool, silent: bool) -> Outcome:
    """Run a command of the runtime that has a command in a container run, as
    :func:`run_foreground` does; *silent* without any streams.
    """
    if silent:
        code = run_quietly(command)
        return understood(code, log) if code else Outcome(0)
    status = _run(command, interactive, None, None)
    assert status is not None
    return _outcome(status, log)


def _outcome(status: int, log: str) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    code = 128 - code if code < 0 else code
    return understood(code, log) if code else Outcome(0)


class _EndAfter:
    """Kills a container some time after it was asked to end."""

    def __init__(self, timeout_s: float, words: list[str]) -> None:
        self._timeout_s = timeout_s
        self._words = words
        self._deadline_s: float | None = None

    def note(self, number: int) -> None:
        """Note a signal that was passed on."""
        if number == signal.SIGTERM and self._deadline_s is None:
            self._deadline_s = time.monotonic() + self._timeout_s

    def look(self) -> float:
        """Kill if it is time; return for how long nothing is to be done."""
        if self._deadline_s is None:
            return _LOOK_S
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            self._deadline_s = None
            run_quietly(self._words)
            return _LOOK_S
        return min(left_s, _LOOK_S)


def _run(
    command: list[str], interactive: bool, server_pid: int | None, end: _EndAfter | None
) -> int | None:
    """Run a command and pass signals on to it; return as :func:`_wait`."""
    watched = forwarded_signals() | {signal.SIGCHLD}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        pid, own_group = _spawn(command, interactive)
        return _wait(pid, server_pid, watched, own_group, end)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


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


def _wait(
    pid: int,
    server_pid: int | None,
    watched: set[signal.Signals],
    own_group: bool,
    end: _EndAfter | None,
) -> int | None:
    """Wait for the runtime's end and return its wait status, or None if the server ended before
    it.
    """
    server_ended = False
    while True:
        # With a time limit, because a thread that does not block SIGCHLD may have got it.
        info = signal.sigtimedwait(watched, _LOOK_S if end is None else end.look())
        if info is not None and info.si_signo != signal.SIGCHLD:
            # What the terminal sends, the runtime got as well, being in the same group.
            if own_group or info.si_code != _SI_KERNEL:
                os.kill(pid, info.si_signo)
            if end is not None:
                end.note(info.si_signo)
            continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return None if server_ended else status
        if server_pid is not None and not server_ended and _has_ended(server_pid):
            server_ended = True
            os.kill(pid, signal.SIGKILL)


def _has_ended(pid: int) -> bool:
    """Tell whether a child is a zombie, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def understood(code: int, log: str) -> Outcome:
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
    run_quietly(command)


def run_quietly(command: list[str], streams: tuple[int, int, int] = (-1, -1, -1)) -> int:
    """Run a command of the runtime to its end and return its exit code, 128 and more for a signal.

    Its standard streams, and those of the container if it makes one, are *streams*; below 0 there
    is nothing.
    """
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    for fd, given in enumerate(streams):
        if given < 0:
            actions.append((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, given, fd))
    pid = os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=actions,
        setsigmask=(),
        setsigdef=_DEFAULTS,
    )
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code
