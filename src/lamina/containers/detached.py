"""``lamina run -d``: a container that goes on when the command line has ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from lamina.containers.claim import Claim
from lamina.containers.record import (
    LOG_FILE,
    MESSAGES_FILE,
    ContainerRecord,
    record_of,
    write_record,
)
from lamina.containers.supervisor import Supervisor
from lamina.errors import Error
from lamina.linux.process import set_command_line, set_name
from lamina.serve.container_folders import ContainerFolders
from lamina.serve.error_wire import encode_failure, read_report
from lamina.serve.run import PreparedContainer, RunRequest, prepared_container
from lamina.serve.runtime import Outcome

if TYPE_CHECKING:
    from lamina.opening.open_image import Indexer


def run_detached(request: RunRequest, *, indexer: Indexer | None = None) -> tuple[str, Outcome]:
    """Start a container and leave it to its supervisor; return its name and whether it began.

    What is said while it is made goes to standard error.  Needs what
    :func:`lamina.serve.run.prepared_container` does, but for mounts: another process makes them.
    Raises lamina.errors.Error if it was not started for a reason of ours.
    """
    mine, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        mine.close()
        _leave(theirs, request, indexer)
    theirs.close()
    os.waitpid(pid, 0)
    with mine, mine.makefile("rb") as stream:
        line = stream.readline()
    report: dict[str, Any] = read_report(
        line, "the supervisor ended before the container was started"
    )
    sys.stderr.write(report["messages"])
    return report["name"], Outcome(report["exit_code"], report["failure"])


def _leave(channel: socket.socket, request: RunRequest, indexer: Indexer | None) -> NoReturn:
    """Become a process of nobody's, and look after the container there."""
    try:
        os.setsid()
        if os.fork() == 0:
            set_name("lamina-guard")
            DetachedContainer(channel, request).run(indexer)
    except Exception:  # noqa: BLE001 - the last frame of the process
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(0)


class DetachedContainer:
    """What those who look after a container know of it."""

    def __init__(self, channel: socket.socket, request: RunRequest) -> None:
        self._channel = channel
        self._request = request
        self._folder_fd = -1
        self._log_fd = -1
        self._messages_fd = -1
        self._claim: Claim | None = None
        self._record: ContainerRecord | None = None

    def run(self, indexer: Indexer | None) -> None:
        """Do all of it."""
        outcome: Outcome | None = None
        try:
            with prepared_container(self._request, indexer=indexer, made=self._made) as prepared:
                outcome = self._supervised(prepared)
                prepared.keeps = prepared.keeps and not outcome.failure
                prepared.keeps_all = self._request.keep_changes and not outcome.failure
                self._note_end(outcome)
        except Error as error:
            self._report(encode_failure(error))
        else:
            if outcome.failure:
                self._tell(outcome)
        finally:
            if self._claim is not None:
                self._claim.end(125 if outcome is None else outcome.exit_code)

    def _made(self, folders: ContainerFolders) -> None:
        """Open what must be found whatever is mounted over it, and let go of the caller's streams
        and folder: all that was named from there is found.
        """
        self._claim = Claim(folders.bundle, folders.changes)
        os.chdir("/")
        # Variables of the command line are for the container alone.
        set_command_line(f"lamina run -d {folders.bundle}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._folder_fd = os.open(folders.changes, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._log_fd = os.open(LOG_FILE, flags, 0o600, dir_fd=self._folder_fd)
        self._messages_fd = os.open(
            MESSAGES_FILE, flags - os.O_WRONLY + os.O_RDWR, 0o600, dir_fd=self._folder_fd
        )
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.close(null)
        os.dup2(self._messages_fd, 2)

    def _supervised(self, prepared: PreparedContainer) -> Outcome:
        self._record = record_of(prepared, self._request, detached=True)
        write_record(self._folder_fd, self._record)
        supervisor = Supervisor(
            prepared,
            self._log_fd,
            stop_signal=self._record.stop_signal,
            stop_timeout_s=self._record.stop_timeout_s,
            started=self._started,
            # Where the supervisor has told before it was killed, nobody listens any more.
            taken_over=lambda: self._tell(Outcome(0)),
        )
        return supervisor.run(self._begun)

    def _started(self) -> None:
        """In the supervisor: tell the command line; where that is gone, nobody wants it."""
        if not self._tell(Outcome(0)):
            os.kill(os.getpid(), signal.SIGTERM)

    def _begun(self, pid: int) -> None:
        """In the guardian: note who looks after the container."""
        assert self._record is not None
        import msgspec

        both = (pid, os.getpid())
        self._record = msgspec.structs.replace(self._record, supervisors=both)
        write_record(self._folder_fd, self._record)

    def _note_end(self, outcome: Outcome) -> None:
        if self._record is not None:
            write_record(self._folder_fd, self._record.ended(outcome.exit_code, time.time()))

    def _tell(self, outcome: Outcome) -> bool:
        """Tell the command line how the start went; return whether it is there to hear it."""
        assert self._record is not None
        messages = os.pread(self._messages_fd, 1 << 20, 0).decode(errors="replace")
        facts = {
            "name": self._record.name,
            "exit_code": outcome.exit_code,
            "failure": outcome.failure,
            "messages": messages,
        }
        return self._report(json.dumps(facts).encode())

    def _report(self, line: bytes) -> bool:
        try:
            self._channel.sendall(line + b"\n")
        except OSError:
            return False
        finally:
            self._channel.close()
        return True
