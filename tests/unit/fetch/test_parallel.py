from __future__ import annotations

import threading

import pytest

from lamina.fetch.parallel import Parallel


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
    barrier = threading.Barrier(3, timeout=10)
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
    both = threading.Barrier(2, timeout=10)

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
            target=lambda: parallel.run(lambda _: release.wait(10), range(2)), daemon=True
        )
        slow.start()
        done: list[int] = []
        parallel.run(done.append, range(4))
        assert sorted(done) == [0, 1, 2, 3]
        release.set()
        slow.join(10)


def test_after_close_the_caller_does_all() -> None:
    parallel = Parallel(3)
    parallel.close()
    parallel.close()
    done: list[int] = []
    parallel.run(done.append, range(5))
    assert done == [0, 1, 2, 3, 4]
