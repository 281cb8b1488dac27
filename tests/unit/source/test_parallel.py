from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from lamina.source.parallel import MOST_LATER, Parallel


def test_all_items_are_worked_on() -> None:
    done: list[int] = []
    with Parallel(3) as parallel:
        parallel.run(done.append, range(100))
    assert sorted(done) == list(range(100))


def test_one_item_stays_in_the_callers_thread() -> None:
    threads: list[threading.Thread] = []
    with Parallel(3) as parallel:
        parallel.run(lambda _: threads.append(threading.current_thread()), [1])
    assert threads == [threading.current_thread()]


def test_items_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=60)
    with Parallel(3) as parallel:
        parallel.run(lambda _: barrier.wait(), range(3))


def test_an_exception_is_raised_and_stops_the_rest() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(item)

    with Parallel(2) as parallel, pytest.raises(ValueError, match=r"\d"):
        parallel.run(work, range(1000))
    assert len(begun) <= 2


def test_an_exception_in_a_helper_is_raised() -> None:
    main = threading.current_thread()
    both = threading.Barrier(2, timeout=60)

    def work(_: int) -> None:
        both.wait()
        if threading.current_thread() is not main:
            raise ValueError("helper")

    with Parallel(2) as parallel, pytest.raises(ValueError, match="helper"):
        parallel.run(work, range(2))


def test_busy_helpers_are_not_waited_for() -> None:
    release = threading.Event()
    with Parallel(2) as parallel:
        slow = threading.Thread(
            target=lambda: parallel.run(lambda _: release.wait(60), range(2)), daemon=True
        )
        slow.start()
        done: list[int] = []
        parallel.run(done.append, range(4))
        assert sorted(done) == [0, 1, 2, 3]
        release.set()
        slow.join(60)


def test_after_close_the_caller_does_all() -> None:
    parallel = Parallel(3)
    parallel.close()
    parallel.close()
    done: list[int] = []
    parallel.run(done.append, range(5))
    assert done == [0, 1, 2, 3, 4]


def test_what_can_wait_is_done_by_another_and_by_the_caller_when_that_one_is_busy() -> None:
    go = threading.Event()
    threads: list[threading.Thread] = []

    def wait() -> None:
        threads.append(threading.current_thread())
        go.wait(60)

    with Parallel() as parallel:
        for _ in range(MOST_LATER):
            parallel.later(wait)
        parallel.later(lambda: threads.append(threading.current_thread()))
        assert threading.current_thread() in threads
        go.set()
    assert len(set(threads)) == 2


def test_items_may_wait_for_what_can_wait() -> None:
    """Also while all helpers do."""

    def work(_: int) -> None:
        done = threading.Event()
        parallel.later(done.set)
        assert done.wait(60)

    with Parallel(3) as parallel:
        parallel.run(work, range(30))


def slowly(done: list[int]) -> None:
    time.sleep(0.05)
    done.append(1)


def test_the_end_waits_for_what_can_wait() -> None:
    done: list[int] = []
    parallel = Parallel(2)
    parallel.later(partial(slowly, done))
    parallel.close()
    assert done == [1]
    parallel.later(lambda: done.append(2))
    assert done == [1, 2], "after it, everything is done at once"


def fail() -> None:
    raise ZeroDivisionError


def test_a_defect_in_what_can_wait_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Parallel(2) as parallel:
        for _ in range(5):
            parallel.later(fail)
    assert "ZeroDivisionError" in caplog.text
