"""The worker pool: errors come through, and nobody is left behind."""

from __future__ import annotations

import os
import time

import pytest

from lamina.build.workers import Workers
from lamina.errors import Error, FormatError, KernelError, StoreError

state: dict[str, int] = {}


def adopt(given: dict[str, int]) -> None:
    state.update(given)


def answer() -> tuple[int, int]:
    return state["answer"], os.getpid()


def fail(kind: str) -> None:
    if kind == "format":
        raise FormatError("broken", hint="fix it")
    if kind == "kernel":
        raise Stubborn(1, 2)
    if kind == "os":
        raise OSError(28, "No space left on device")
    os._exit(9)


class Stubborn(KernelError):
    """An error that cannot be pickled back, because its arguments are not its message."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}", hint="none")


def sleep() -> None:
    time.sleep(3600)


def test_workers_inherit_the_state() -> None:
    with Workers(2, adopt, {"answer": 42}) as workers:
        found, pid = workers.submit(answer).result()
    assert found == 42
    assert pid != os.getpid()


def test_errors_come_through() -> None:
    with Workers(1, adopt, {}) as workers:
        with pytest.raises(FormatError, match="broken") as caught:
            workers.submit(fail, "format").result()
        assert caught.value.hint == "fix it"
        with pytest.raises(Error, match="1 and 2"):
            workers.submit(fail, "kernel").result()
        with pytest.raises(StoreError, match="No space left"):
            workers.submit(fail, "os").result()


def test_a_worker_that_dies_is_one_clear_error() -> None:
    died = pytest.raises(Error, match="worker process of the conversion died")
    with died, Workers(2, adopt, {}) as workers:
        workers.submit(fail, "die").result()


def test_an_exception_ends_the_workers_at_once() -> None:
    """One that went on to its end would be ended by the time limit of the test."""
    with pytest.raises(KeyboardInterrupt), Workers(2, adopt, {}) as workers:
        workers.submit(sleep)
        raise KeyboardInterrupt


def echo(data: bytes) -> bytes:
    return data


def test_tasks_and_answers_larger_than_a_pipe_come_through() -> None:
    sent = [bytes([number]) * size for number, size in enumerate((10, 300_000) * 8)]
    with Workers(2, adopt, {}) as workers:
        futures = [workers.submit(echo, data) for data in sent]
        workers.no_more()
        assert [future.result() for future in futures] == sent


def make_unpicklable() -> object:
    return lambda: None


def divide() -> float:
    return 1 / 0


def test_a_defect_tells_where_it_is() -> None:
    with Workers(1, adopt, {}) as workers:
        with pytest.raises(ZeroDivisionError) as caught:
            workers.submit(divide).result()
        assert "in divide" in caught.value.__notes__[0]
        with pytest.raises(Exception, match="pickle"):
            workers.submit(make_unpicklable).result()
        assert workers.submit(echo, b"still here").result() == b"still here"


def test_processes_that_cannot_be_started_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, pids = os.fork, list[int]()

    def fork_once() -> int:
        if pids:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        pid = fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork_once)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Error, match="cannot be started"):
        Workers(2, adopt, {})
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], 0)


def test_an_answer_that_has_no_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_file: object) -> None:
        raise MemoryError

    with Workers(1, adopt, {"answer": 42}) as workers:
        # In this process alone: the worker was forked before.
        monkeypatch.setattr("lamina.build.workers.pickle.load", load)
        with pytest.raises(Error, match="died"):
            workers.submit(answer).result(60)
