"""Where no thread can be started, an error in words comes out, or fewer do the work."""

from __future__ import annotations

import threading

import pytest

from lamina.errors import KernelError
from lamina.posix.threads import start_thread
from lamina.serve.fuse_threads import FuseThreads
from lamina.source.parallel import Parallel


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.usefixtures("no_threads")
def test_a_thread_that_cannot_be_started() -> None:
    with pytest.raises(KernelError, match="threads") as told:
        start_thread(lambda: None, "name")
    assert "ulimit -u" in str(told.value.hint)


@pytest.mark.usefixtures("no_threads")
def test_no_thread_at_all_is_an_error_of_the_mount() -> None:
    threads = FuseThreads()
    with pytest.raises(KernelError, match="to answer reads"):
        threads.add(0, None)  # type: ignore[arg-type]
    threads.close()


@pytest.mark.usefixtures("no_threads")
def test_the_caller_does_all_by_itself() -> None:
    done: list[int] = []
    later: list[int] = []
    with Parallel() as parallel:
        parallel.run(done.append, range(10))
        for number in range(5):
            parallel.later(lambda number=number: later.append(number))  # type: ignore[misc]
    assert sorted(done) == list(range(10))
    assert later == list(range(5))
