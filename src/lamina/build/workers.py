"""Processes that scan and pack layers: a pool forked from the converter, which inherits what they
work on.

Fork keeps start-up to milliseconds and hands over open files and the repository without pickling;
so the pool must be made before the converter starts threads of its own.  A worker never outlives
the converter: the kernel kills it when the thread that forked it ends.
"""

from __future__ import annotations

import gc
import multiprocessing.context
import multiprocessing.process
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from lamina.errors import Error, StoreError
from lamina.linux.process import set_parent_death_signal

P = ParamSpec("P")
T = TypeVar("T")


class _ForkContext(multiprocessing.context.ForkContext):
    """The fork context, remembering the processes it made so that they can be ended early."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[multiprocessing.process.BaseProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> multiprocessing.process.BaseProcess:  # type: ignore[override]  # noqa: N802
        process = super().Process(*args, **kwargs)
        self.started.append(process)
        return process


class Workers:
    """``jobs`` forked processes.  ``setup(state)`` runs first in each; ``state`` is inherited, not
    copied.

    Leaving the context waits for the workers; leaving it by an exception ends them at once.
    """

    def __init__(self, jobs: int, setup: Callable[[T], None], state: T) -> None:
        self._context = _ForkContext()
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=self._context, initializer=_start, initargs=(os.getpid(), setup, state)
        )

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a task; tasks start in the order in which they come."""
        return self._pool.submit(_Guarded(task), *args, **kwargs)

    def no_more(self) -> None:
        """Say that no task will follow: workers end as soon as they run out of them."""
        self._pool.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            for process in self._context.started:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if kind is not None and issubclass(kind, BrokenProcessPool):
            raise Error(
                "A worker process of the conversion died.",
                hint="The machine may be out of memory; use fewer jobs.",
            ) from value


def _start(parent: int, setup: Callable[[T], None], state: T) -> None:
    # Tasks make no reference cycles, and what was inherited shall stay shared.
    gc.disable()
    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # The converter decides what an interrupt means; it ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    setup(state)


class _Guarded(Generic[P, T]):
    """A task whose errors reach the converter: as errors of ours that can be pickled."""

    def __init__(self, task: Callable[P, T]) -> None:
        self._task = task

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(self._task, *args, **kwargs)


def _run(task: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        return task(*args, **kwargs)
    except OSError as error:
        raise StoreError(f"A temporary file cannot be written or read: {error.strerror}.") from None
    except Error as error:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - any failure means that it cannot travel
            raise Error(str(error), hint=error.hint) from None
        raise
