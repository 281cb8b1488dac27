"""Who looks after a detached container, where something of his own goes wrong."""

from __future__ import annotations

import pytest

from lamina.containers.supervisor import Supervisor
from lamina.serve.runtime import RUNTIME_FAILED, Outcome


def fail(*_: object) -> int:
    raise OSError("no descriptors left")


def supervisor(monkeypatch: pytest.MonkeyPatch, **replaced: object) -> Supervisor:
    steps = {"_create": lambda: None, "_read_pid": lambda: 1, "_forget": lambda: None, **replaced}
    found = object.__new__(Supervisor)
    for name, step in steps.items():
        monkeypatch.setattr(found, name, step, raising=False)
    monkeypatch.setattr(found, "_started", lambda: None, raising=False)
    return found


def test_a_container_that_has_run_keeps_what_it_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an outcome with a failure is one of a container that never ran."""
    assert supervisor(monkeypatch, _follow=fail)._start_and_follow() == Outcome(RUNTIME_FAILED)


def test_one_that_never_ran_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = supervisor(monkeypatch, _create=fail)._start_and_follow()
    assert outcome == Outcome(RUNTIME_FAILED, "the supervisor failed: no descriptors left")
