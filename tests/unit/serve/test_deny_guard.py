"""The process that keeps a fanotify group when its server dies."""

from __future__ import annotations

import time

import pytest

from lamina.serve import deny_guard


def test_it_survives_events_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE, for instance: it is the last that keeps readers from zeros."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    deny_guard._deny_all(-1)
    assert pauses == [0.25]
