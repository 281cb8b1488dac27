from __future__ import annotations

from lamina.content.failure_log import MOST_KEYS, QUIET_S, FailureLog


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_the_same_failure_is_told_once_in_a_while() -> None:
    clock = Clock()
    log = FailureLog(clock)
    assert log.untold("a") == ""
    assert log.untold("b") == ""
    assert [log.untold("a") for _ in range(3)] == [None] * 3
    clock.now += QUIET_S
    assert log.untold("a") == " (3 more times meanwhile)"
    assert log.untold("a") is None
    clock.now += QUIET_S
    assert log.untold("a") == " (1 more times meanwhile)"
    assert log.untold("b") == ""


def test_memory_is_bounded() -> None:
    log = FailureLog(Clock())
    for number in range(MOST_KEYS + 1):
        assert log.untold(number) == ""
    assert log.untold(MOST_KEYS) is None
    assert log.untold(0) == ""
    assert len(log._told) == MOST_KEYS
