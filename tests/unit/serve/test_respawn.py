"""How soon a process of the service is replaced."""

from __future__ import annotations

import os
import signal

import pytest

from lamina.serve.service import respawn
from lamina.serve.service.respawn import LONGEST_PAUSE_S, PAUSE_S, Respawn, reap

FAILED = 1 << 8
"""The status of a process that has ended with code 1."""


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(respawn, "time", clock)
    return clock


def lives(clock: Clock, lives: Respawn, status: int | None, lived_s: float) -> float:
    lives.begin()
    clock.now += lived_s
    return lives.pause_s(status)


def test_one_that_fails_again_and_again_is_replaced_less_and_less_often(clock: Clock) -> None:
    found = Respawn()
    # Also where it takes a while to fail.
    pauses = [lives(clock, found, FAILED, 0.2) for _ in range(40)]
    assert pauses == sorted(pauses)
    assert pauses[0] > PAUSE_S
    assert pauses[-1] == LONGEST_PAUSE_S
    assert sum(pauses[:10]) > 20
    # Much later it fails for another reason.
    assert lives(clock, found, FAILED, 1000) == pauses[0]


@pytest.mark.parametrize("status", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_crash_is_a_failure(clock: Clock, status: int) -> None:
    found = Respawn()
    assert [lives(clock, found, status, 0.2) > PAUSE_S for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("status", [signal.SIGKILL, signal.SIGTERM, None])
def test_one_that_was_killed_is_replaced_at_once(clock: Clock, status: int | None) -> None:
    found = Respawn()
    assert [lives(clock, found, status, 0.2) for _ in range(40)] == [0.0] * 40
    assert lives(clock, found, status, 0.01) == PAUSE_S


def test_the_status_of_a_child() -> None:
    pids = []
    for code in (3, 4):
        pid = os.fork()
        if pid == 0:
            os._exit(code)
        pids.append(pid)
    # Collects the other as well, if it has ended.
    assert reap(pids[1]) == 4 << 8
    assert reap(pids[0]) in (3 << 8, None)
    assert reap(pids[1]) is None


def test_one_that_is_no_child() -> None:
    assert reap(os.getppid()) is None
