"""A worker that outlives the others of its service."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.serve.service import last
from lamina.serve.service.start import open_lock, try_lock
from lamina.serve.service.state import ServiceState


class ForkedError(Exception):
    """Instead of waiting for ever."""


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ServiceState]:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    forks: list[object] = []

    def pause() -> None:
        raise ForkedError(len(forks))

    monkeypatch.setattr(last, "fork_as", lambda role: forks.append(role) or 1)
    monkeypatch.setattr(signal, "pause", pause)
    with socket.socket() as listener:
        yield ServiceState(listener, -1)


@pytest.mark.parametrize("known", [True, False])
def test_the_last_of_all_begins_a_new_service(state: ServiceState, known: bool) -> None:
    with pytest.raises(ForkedError, match="1"):
        last.outlive(state, {}, known=known)


def test_one_that_nobody_knows_waits_for_others_and_goes(
    state: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last, "UNKNOWN_S", 0.05)
    holders = open_lock()
    try:
        assert try_lock(holders)
        last.outlive(state, {}, known=False)
    finally:
        os.close(holders)
        with contextlib.suppress(OSError):
            fcntl.fcntl(state.lock_fd, fcntl.F_GETFD)
            os.close(state.lock_fd)
