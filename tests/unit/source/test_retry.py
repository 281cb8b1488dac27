from __future__ import annotations

import pytest

from lamina.errors import UsageError
from lamina.source.retry import VARIABLE, RetryPolicy


def test_the_environment_sets_single_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert RetryPolicy.from_environment() == RetryPolicy()
    monkeypatch.setenv(VARIABLE, "deadline_s=2.5, attempts=7,,")
    policy = RetryPolicy.from_environment()
    assert policy == RetryPolicy(deadline_s=2.5, attempts=7)
    assert isinstance(policy.attempts, int)


@pytest.mark.parametrize(
    "text", ["deadline=3", "deadline_s", "attempts=1.5", "attempt_s=-1", "attempts=0", "x=1e9"]
)
def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match="no limit of retries"):
        RetryPolicy.from_environment()
