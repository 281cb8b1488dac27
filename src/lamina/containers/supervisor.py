"""Looking after one detached container, by two processes of which one is enough.

The *guardian* has mounted everything; it forks the *supervisor*, which has the runtime make the
container, writes its log and waits for its end.  Both adopt orphans, and share all descriptors.  If
the supervisor is killed, the container becomes the guardian's child, which goes on with the same;
if the guardian is killed, the supervisor also undoes what is mounted.  If both are, whoever serves
the image notices, and kills the container.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Final

from lamina.containers.log_format import LogStream
from lamina.containers.runtime_state import runtime_state
from lamina.containers.signals import signal_number
from lamina.containers.streams import Streams
from lamina.linux.process import become_subreaper, set_name
from lamina.serve.run import PreparedContainer
from lamina.serve.runtime import (
    CANNOT_INVOKE,
    RUNTIME_FAILED,
    Outcome,
    remove_container,
    run_quietly,
    understood,
)

PID_FILE: Final = "pid"
_EXIT_FILE: Final = "exit"
LOG: Final = logging.getLogger("lamina")
_KILLED: Final = 137
# A pipe has no more in it (proc_sys_fs(5), pipe-max-size).
_MOST_LEFT_BYTES: Final = 1 << 20
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Supervisor:
    """The container as those who look after it have it, before and after they are two."""

    def __init__(
        self,
        prepared: PreparedContainer,
        log_fd: int,
        *,
        stop_signal: str,
        stop_timeout_s: float,
        started: Callable[[], object],
        taken_over: Callable[[], object],
    ) -> None:
        """Have *started* called in the supervisor when the command runs, and *taken_over* in who
        takes its place.
        """
        options = prepared.options
        self._prepared = prepared
        self._log_fd = log_fd
        self._stop_signal = signal_number(stop_signal)
        self._stop_timeout_s = stop_timeout_s
        self._started = started
        self._taken_over = taken_over
        self._streams = Streams(interactive=options.interactive, terminal=options.terminal)
        self._deadline_s: float | None = None
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self, begun: Callable[[int], None]) -> Outcome:
        """Run the container to its end; *begun* gets the supervisor's pid.

        Returns in one of the two processes only, the one that is to undo what is mounted.
        """
        become_subreaper()
        guardian = os.getpid()
        guardian_fd = os.pidfd_open(guardian)
        pid = os.fork()
        if pid == 0:
            outcome = self._supervise()
            self._write_exit(outcome)
            if not _has_ended(guardian_fd):
                os._exit(0)
            return outcome
        begun(pid)
        self._streams.close_inner()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.waitpid(pid, 0)
        outcome_of_other = self._read_exit()
        return outcome_of_other if outcome_of_other is not None else self._take_over()

    def _supervise(self) -> Outcome:
        set_name("lamina-super")
        become_subreaper()
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _noted)
        return self._start_and_follow()

    def _start_and_follow(self) -> Outcome:
        has_started = False
        try:
            failure = self._create()
            if failure is not None:
                return failure
            has_started = True
            self._started()
            return Outcome(self._follow(self._read_pid()))
        except Exception as error:  # noqa: BLE001 - the last frame of the process
            told = f"the supervisor failed: {error}"
            # Of a container that has run, what it wrote is kept, as after any other end.
            if has_started:
                LOG.error("%s", told)  # noqa: TRY400 - one clear line
            return Outcome(RUNTIME_FAILED, "" if has_started else told)
        finally:
            self._forget()

    def _create(self) -> Outcome | None:
        """Have the runtime make the container and start it; return what went wrong."""
        prepared, folders = self._prepared, self._prepared.folders
        log = os.path.join(folders.bundle, "runtime.log")
        pid_file = os.path.join(folders.bundle, PID_FILE)
        words = ["create", "--bundle", folders.bundle, "--pid-file", pid_file]
        listener: socket.socket | None = None
        with contextlib.ExitStack() as stack:
            if self._streams.is_terminal:
                # A short name: the address of a socket has 108 bytes.
                parent = os.path.dirname(os.path.dirname(folders.bundle))
                place = stack.enter_context(tempfile.TemporaryDirectory(dir=parent))
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(os.path.join(place, "tty"))
                listener.listen(1)
                words += ["--console-socket", os.path.join(place, "tty")]
            command = prepared.runtime.command(log, *words, folders.container_id)
            code = run_quietly(command, self._streams.inner)
            if code == 0 and listener is not None:
                self._streams.take_terminal(listener)
        self._streams.close_inner()
        if code == 0:
            command = prepared.runtime.command(log, "start", folders.container_id)
            code = run_quietly(command)
        return None if code == 0 else _failed(understood(code, log))

    def _take_over(self) -> Outcome:
        """Go on where the supervisor was killed."""
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _noted)
        pid = self._read_pid()
        try:
            if not pid or not _is_child(pid) or self._is_only_made():
                return Outcome(_KILLED, "the supervisor was killed before the command was started")
            self._taken_over()
            self._streams.inherit()
            return Outcome(self._follow(pid))
        finally:
            self._forget()

    def _is_only_made(self) -> bool:
        """Tell whether the container waits for being started."""
        prepared = self._prepared
        return runtime_state(prepared.runtime, prepared.folders.container_id).status == "created"

    def _follow(self, pid: int) -> int:
        """Write the log until the container has ended; return its exit code."""
        container_fd = os.pidfd_open(pid)
        poll = select.poll()
        streams = {fd: LogStream(name, self._log_fd) for fd, name in self._streams.outputs.items()}
        server_pid = self._prepared.watched_pid
        server_fd = -1 if server_pid is None else os.pidfd_open(server_pid)
        for fd in (*streams, container_fd, self._wake[0], *([server_fd] * (server_fd >= 0))):
            poll.register(fd, select.POLLIN)
        ended = False
        while not ended:
            for fd, _ in poll.poll(self._wait_ms()):
                if fd in streams:
                    if not self._relay(fd, streams[fd]):
                        poll.unregister(fd)
                elif fd == container_fd:
                    ended = True
                elif fd == server_fd:
                    poll.unregister(fd)
                    _send(container_fd, signal.SIGKILL)
                else:
                    self._stop(container_fd)
            if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                self._deadline_s = None
                _send(container_fd, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._drain(streams)
        return 128 - code if code < 0 else code

    def _wait_ms(self) -> float | None:
        if self._deadline_s is None:
            return None
        return max(self._deadline_s - time.monotonic(), 0) * 1000

    def _relay(self, fd: int, stream: LogStream) -> bool:
        data = self._streams.read(fd)
        stream.feed(data)
        return bool(data)

    def _drain(self, streams: dict[int, LogStream]) -> None:
        """Write what is there now: processes that outlive the first keep nobody waiting, whether
        they write or not.
        """
        for fd, stream in streams.items():
            os.set_blocking(fd, False)
            left = _MOST_LEFT_BYTES
            while left > 0 and (data := self._streams.read(fd)):
                stream.feed(data)
                left -= len(data)
            stream.end()

    def _stop(self, container_fd: int) -> None:
        """End the container, because this process is told to."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake[0], 64)
        if self._deadline_s is None:
            _send(container_fd, self._stop_signal)
            if self._stop_timeout_s >= 0:
                self._deadline_s = time.monotonic() + self._stop_timeout_s

    def _forget(self) -> None:
        """Have the runtime forget the container, and kill what is left of it."""
        folders = self._prepared.folders
        remove_container(self._prepared.runtime, folders.bundle, folders.container_id)

    def _read_pid(self) -> int:
        try:
            with open(os.path.join(self._prepared.folders.bundle, PID_FILE)) as file:
                return int(file.read())
        except (OSError, ValueError):
            return 0

    def _write_exit(self, outcome: Outcome) -> None:
        path = os.path.join(self._prepared.folders.bundle, _EXIT_FILE)
        with contextlib.suppress(OSError):
            with open(f"{path}.new", "w") as file:
                json.dump(outcome, file)
            os.rename(f"{path}.new", path)

    def _read_exit(self) -> Outcome | None:
        path = os.path.join(self._prepared.folders.bundle, _EXIT_FILE)
        with contextlib.suppress(OSError, ValueError, TypeError), open(path) as file:
            return Outcome(*json.load(file))
        return None


def _failed(outcome: Outcome) -> Outcome:
    """Return a failure of the runtime that says something."""
    if outcome.failure:
        return outcome
    code = outcome.exit_code if outcome.exit_code >= CANNOT_INVOKE else RUNTIME_FAILED
    return Outcome(code, "the container runtime failed without saying why")


def _noted(_number: int, _frame: object) -> None:
    """Let the wake-up pipe tell."""


def _send(process_fd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process_fd, number)


def _has_ended(process_fd: int) -> bool:
    return bool(select.select([process_fd], [], [], 0)[0])


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
