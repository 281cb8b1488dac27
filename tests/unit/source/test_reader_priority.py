from __future__ import annotations

import threading
import time

import pytest

from lamina.source.reader_priority import ReaderPriority, TokenBucket


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_holds_over_time() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock=clock)
    taken = 0
    while clock.now < 100:
        pause = bucket.take(300)
        if pause:
            clock.now += pause
        else:
            taken += 300
    assert 100_000 <= taken <= 101_600, "a second's burst and one request more"


def test_a_burst_is_bounded() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock=clock)
    clock.now = 1e6
    taken = 0
    while not bucket.take(100):
        taken += 100
    assert taken == 1100


def test_a_request_beyond_the_burst_goes_into_debt() -> None:
    clock = Clock()
    bucket = TokenBucket(1000, clock=clock)
    assert bucket.take(5000) == 0
    assert bucket.take(1) == pytest.approx(4)
    clock.now = 4.5
    assert bucket.take(1) == 0


def test_a_rate_of_nothing() -> None:
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(0)


def test_the_background_waits_for_readers() -> None:
    priority = ReaderPriority()
    stopped = threading.Event()
    order: list[str] = []

    def background() -> None:
        assert priority.wait_idle(1, None, stopped)
        order.append("background")

    assert not priority.has_readers
    with priority.foreground():
        assert priority.has_readers
    with priority.foreground(), priority.foreground():
        thread = threading.Thread(target=background)
        thread.start()
        time.sleep(0.05)
        order.append("reader")
    thread.join(60)
    assert order == ["reader", "background"]


def test_a_stopped_background_does_not_wait() -> None:
    priority = ReaderPriority()
    stopped = threading.Event()
    stopped.set()
    with priority.foreground():
        assert not priority.wait_idle(1, None, stopped)
    clock = Clock()
    bucket = TokenBucket(1, clock=clock)
    bucket.take(1000)
    later = threading.Event()
    threading.Timer(0.05, later.set).start()
    assert not priority.wait_idle(1, bucket, later), "not after the 999 s that the bucket asks for"
