"""Windows that are fetched when they are needed."""

from __future__ import annotations

import threading

import pytest

from lamina.content.window_frames import LEAST_BYTES, WindowFrames
from lamina.errors import FetchError

SIZES = [3000] * 10
START = 77
STORED = bytes(START) + b"".join(bytes([n]) * size for n, size in enumerate(SIZES))


class Reader:
    """Notes what is read; fails while ``failure`` is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.failure: FetchError | None = None

    def __call__(self, offset: int, size_bytes: int) -> bytes:
        self.asked.append((offset, size_bytes))
        if self.failure is not None:
            raise self.failure
        return STORED[offset : offset + size_bytes]


def made(reader: Reader, ahead_bytes: int = 0) -> WindowFrames:
    return WindowFrames(reader, lambda: ahead_bytes, START, SIZES)


def test_a_few_neighbours_come_along() -> None:
    reader = Reader()
    frames = made(reader)
    assert frames.frame(4) == bytes([4]) * 3000
    assert reader.asked == [(START + 4 * 3000, LEAST_BYTES // 3000 * 3000)]
    assert [frames.has(number) for number in range(3, 7)] == [False, True, True, False]
    assert frames.frame(5) == bytes([5]) * 3000
    assert frames.frame(3) == bytes([3]) * 3000
    assert reader.asked[1:] == [(START + 3 * 3000, 3000)], "what is here is not fetched again"


def test_over_a_long_way_more_come_along() -> None:
    reader = Reader()
    frames = made(reader, ahead_bytes=1 << 20)
    frames.frame(2)
    assert reader.asked == [(START + 2 * 3000, 8 * 3000)]


def test_one_that_is_longer_than_a_request_should_be() -> None:
    reader = Reader()
    frames = WindowFrames(reader, lambda: 0, START, [30000])
    assert len(frames.frame(0)) == 30000


def test_forgotten_is_fetched_again() -> None:
    reader = Reader()
    frames = made(reader)
    frames.frame(0)
    frames.forget()
    assert not frames.has(0)
    frames.frame(0)
    assert len(reader.asked) == 2


def test_too_few_bytes_are_an_error() -> None:
    frames = WindowFrames(lambda offset, size: b"x", lambda: 0, START, SIZES)
    with pytest.raises(FetchError, match="1 bytes of a chunk table"):
        frames.frame(0)


def test_one_fetch_for_all_and_its_failure_is_forgotten() -> None:
    reader = Reader()
    begun, gate = threading.Event(), threading.Event()

    def slow(offset: int, size_bytes: int) -> bytes:
        begun.set()
        assert gate.wait(60)
        return reader(offset, size_bytes)

    reader.failure = FetchError("gone")
    frames = WindowFrames(slow, lambda: 0, START, SIZES)
    outcomes: list[object] = []

    def want() -> None:
        try:
            outcomes.append(frames.frame(7))
        except FetchError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    gate.set()
    for thread in threads:
        thread.join(60)
    assert all(isinstance(outcome, FetchError) for outcome in outcomes)
    assert len(outcomes) == 4
    reader.failure = None
    assert frames.frame(7) == bytes([7]) * 3000
