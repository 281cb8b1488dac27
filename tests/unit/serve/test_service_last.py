"""A worker that outlives the others of its service."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.serve.service import last
from lamina.serve.service.kept import KeptMount
from lamina.serve.service.spec import MountSpec
from lamina.serve.service.start import open_lock, try_lock
from lamina.serve.service.state import ServiceState


class WaitsError(Exception):
    """Instead of waiting for ever."""


class Started:
    """Instead of a program; fails at first if told so."""

    returncode: int | None = None
    commands: list[list[str]]
    failures = 0

    def __init__(self, command: list[str], *, stdin: int, pass_fds: tuple[int, ...]) -> None:
        del stdin
        if Started.failures:
            Started.failures -= 1
            raise OSError(errno.ENOMEM, "no memory")
        assert int(command[-1]) in pass_fds
        Started.commands.append(command)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ServiceState]:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))

    def pause() -> None:
        raise WaitsError

    Started.commands, Started.failures = [], 0
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(signal, "pause", pause)
    monkeypatch.setattr(last, "RETRY_S", 0.01)
    with socket.socket() as listener:
        state = ServiceState(listener, -1)
        yield state
        state.note_worker(-1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("failures", [0, 2])
def test_the_last_of_all_begins_a_new_service(
    state: ServiceState, known: bool, failures: int
) -> None:
    Started.failures = failures
    with pytest.raises(WaitsError):
        last.outlive(state, {}, known=known)
    assert [command[1:4] for command in Started.commands] == [
        ["-m", "lamina.serve.service", "--restored"]
    ]


def test_one_that_nobody_knows_waits_for_others_and_goes(
    state: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last, "UNKNOWN_S", 0.05)
    holders = open_lock()
    try:
        assert try_lock(holders)
        last.outlive(state, {}, known=False)
        assert Started.commands == []
    finally:
        os.close(holders)
        os.close(state.lock_fd)


def test_what_is_left_is_all_there(state: ServiceState) -> None:
    spec = MountSpec(reference="oci:ä\udcff", mountpoint="/mnt", store="/store", device="fuse")
    fds = {"device": os.open("/dev/null", os.O_RDONLY), "blob.3": os.open("/dev/null", os.O_RDONLY)}
    mount = KeptMount("7-1", spec, "fuse", fds, {"mountpoint": "/mnt"}, ["/sys/x"], 77)
    state.mounts = {"7-1": mount}
    state.lock_fd = open_lock()
    state.note_worker(os.pidfd_open(os.getpid()))
    found = last.read_state(last.write_state(state))
    try:
        assert found.mounts == state.mounts
        assert found.lingering == state.lingering
        assert (found.lock_fd, found.worker_pidfd) == (state.lock_fd, state.worker_pidfd)
        assert found.listener.fileno() == state.listener.fileno()
    finally:
        found.listener.detach()
        mount.close()
        os.close(state.lock_fd)
