"""The whole of an image that is used early: opened once, in time, and not again and again."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from lamina.content import whole_image
from lamina.content.lazy_image import LazyImage
from lamina.content.start_pages import StartPages
from lamina.content.whole_image import WholeImage
from lamina.errors import Error, FetchError, IntegrityError, StoreError
from lamina.image.errors import ClosedImageError
from lamina.source.retry import DeadlineError


class Opened:
    """An image, as far as it matters here."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def whole(
    open_image: Callable[[], Opened], deadline_s: float = 60, done: Callable[[], None] | None = None
) -> WholeImage:
    """One that is opened when it is asked for, and not by itself."""
    opened = cast("Callable[[], LazyImage]", open_image)
    return WholeImage(
        opened, StartPages(), deadline_s=deadline_s, afterwards=done or (lambda: None)
    )


def test_who_waits_too_long_is_told_and_the_next_one_has_it() -> None:
    may_come, opened, has_ended = threading.Event(), Opened(), threading.Event()
    attempts = []

    def open_image() -> Opened:
        attempts.append(1)
        assert may_come.wait(60)
        return opened

    image = whole(open_image, 0.01, has_ended.set)
    for _ in range(2):
        with pytest.raises(DeadlineError, match="did not come in"):
            image.get()
    may_come.set()
    assert has_ended.wait(60)
    assert cast("object", image.get()) is opened
    assert len(attempts) == 1
    image.close()
    assert opened.closed.is_set()


def test_many_wait_for_one_attempt() -> None:
    may_come, opened, attempts = threading.Event(), Opened(), []

    def open_image() -> Opened:
        attempts.append(1)
        assert may_come.wait(60)
        return opened

    image, found = whole(open_image), []
    threads = [threading.Thread(target=lambda: found.append(image.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    may_come.set()
    for thread in threads:
        thread.join()
    assert cast("object", found) == [opened] * 8
    assert len(attempts) == 1
    image.close()


@pytest.mark.parametrize(
    ("error", "pauses"),
    [(StoreError("full"), [1, 2, 4, 8, 16, 30, 30]), (FetchError("away"), [1] * 7)],
)
def test_a_store_that_fails_on_is_asked_less_and_less(
    monkeypatch: pytest.MonkeyPatch, error: StoreError | FetchError, pauses: list[float]
) -> None:
    now, attempts = [0.0], []
    monkeypatch.setattr(whole_image, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def open_image() -> Opened:
        attempts.append(now[0])
        raise error

    image = whole(open_image)
    for pause_s in pauses:
        for at_s in (0, pause_s - 0.5):
            now[0] += at_s
            with pytest.raises(type(error)):
                image.get()
            now[0] -= at_s
        now[0] += pause_s
    assert attempts == [sum(pauses[:n]) for n in range(len(pauses))]
    image.close()


def test_damage_is_remembered() -> None:
    attempts = []

    def open_image() -> Opened:
        attempts.append(1)
        raise IntegrityError("damaged")

    image = whole(open_image)
    for _ in range(3):
        with pytest.raises(IntegrityError):
            image.get()
    with pytest.raises(IntegrityError):
        image.check()
    assert len(attempts) == 1


@pytest.mark.parametrize("error", [IntegrityError("damaged"), FetchError("away")])
def test_an_error_that_is_raised_again_and_again_holds_no_more_than_once(
    error: IntegrityError | FetchError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_image, "time", SimpleNamespace(monotonic=lambda: 0.0))

    def open_image() -> Opened:
        raise error

    image = whole(open_image)

    def frames() -> int:
        with pytest.raises(type(error)) as told:
            image.get()
        return len(list(traceback.walk_tb(told.value.__traceback__)))

    counts = [frames() for _ in range(10)]
    assert counts[1:] == [counts[1]] * 9
    image.close()


def test_who_waits_when_it_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_image, "CLOSE_S", 0.01)
    may_come, begun, told = threading.Event(), threading.Event(), []

    def open_image() -> Opened:
        begun.set()
        assert may_come.wait(300)
        return Opened()

    image = whole(open_image, 100)

    def read() -> None:
        with pytest.raises(Error) as found:
            image.get()
        told.append(found.type)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert begun.wait(60)
        image.close()
        reader.join()
    finally:
        may_come.set()
    assert told == [ClosedImageError]


def test_what_comes_behind_the_end_is_closed() -> None:
    may_come, opened = threading.Event(), Opened()

    def open_image() -> Opened:
        assert may_come.wait(60)
        return opened

    image = whole(open_image, 0.01)
    with pytest.raises(DeadlineError):
        image.get()
    closing = threading.Thread(target=image.close)
    closing.start()
    assert image._closing.wait(60)
    may_come.set()
    closing.join()
    assert opened.closed.wait(60)
    with pytest.raises(ClosedImageError):
        image.get()


def test_a_defect_is_an_error() -> None:
    def open_image() -> Opened:
        raise ValueError("defect")

    with pytest.raises(Exception, match="defect"):
        whole(open_image).get()
