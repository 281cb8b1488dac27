"""Processes that scan and pack layers: forked from the converter, they inherit what they work on.

Fork keeps start-up to milliseconds and hands over open files and the repository without pickling;
so the pool must be made before the converter starts threads of its own.  Each worker has a pipe
for tasks and one for answers, and a thread of the converter that waits for it.  A worker never
outlives the converter: Linux kills it when the thread that forked it ends, and elsewhere it ends
when it has done what it was sent.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, NoReturn, ParamSpec, Self, TypeVar

from lamina.errors import Error, StoreError, os_hint

P = ParamSpec("P")
T = TypeVar("T")

AHEAD_BYTES = 16 << 10
"""Largest task that is sent to a worker before it is free: two of them fit in its pipe."""

PROTOCOL = 5
"""Of pickle: the first that has byte arrays without a copy."""

FAILED = 70
"""Exit status of a worker that could not go on (sysexits.h, EX_SOFTWARE)."""


class _Worker(NamedTuple):
    """A forked process, and the converter's ends of its pipes."""

    pid: int
    tasks: BinaryIO
    answers: BinaryIO


class _Task(NamedTuple):
    """A call as it is sent, and where its answer goes."""

    future: Future[Any]
    data: bytes


class _Answer(NamedTuple):
    """A pickled answer in parts: a result and None, or None and an error."""

    parts: list[Any]
    is_result: bool


class Workers:
    """``jobs`` forked processes.  ``setup(state)`` runs first in each; ``state`` is inherited, not
    copied.

    Leaving the context waits for the workers; leaving it by an exception ends them at once.
    """

    def __init__(self, jobs: int, setup: Callable[[T], None], state: T) -> None:
        self._tasks: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._no_more = False
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        for stream in (sys.stdout, sys.stderr):
            # What waits in a buffer must not be written by every worker as well.
            with suppress(AttributeError, ValueError):
                stream.flush()
        try:
            for _ in range(jobs):
                self._workers.append(self._fork(setup, state))
        except BaseException:
            # Nobody will leave the context, as it was never entered.
            for worker in self._workers:
                os.kill(worker.pid, signal.SIGKILL)
                worker.tasks.close()
                worker.answers.close()
                os.waitpid(worker.pid, 0)
            raise

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a task; tasks start in the order in which they come."""
        self._start()
        queued = _Task(Future(), pickle.dumps((task, args, kwargs), PROTOCOL))
        with self._changed:
            self._tasks.append(queued)
            self._changed.notify()
        return queued.future

    def no_more(self) -> None:
        """Say that no task will follow: workers end as soon as they run out of them."""
        with self._changed:
            self._no_more = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._kill()
        self._start()
        self.no_more()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            os.waitpid(worker.pid, 0)

    def _kill(self) -> None:
        with self._changed:
            while self._tasks:
                self._tasks.pop().future.cancel()
        for worker in self._workers:
            os.kill(worker.pid, signal.SIGKILL)

    def _start(self) -> None:
        """Start the threads, once: not before there is work, so that others can fork as well."""
        if self._threads:
            return
        for worker in self._workers:
            thread = threading.Thread(target=self._serve, args=(worker,), name="lamina-worker")
            thread.start()
            self._threads.append(thread)

    def _fork(self, setup: Callable[[T], None], state: T) -> _Worker:
        with _process_errors(), ExitStack() as stack:
            pipes = [end for _ in range(2) for end in _pipe(stack)]
            parent = os.getpid()
            pid = os.fork()
            stack.pop_all()
        task_read, task_write, answer_read, answer_write = pipes
        if not pid:
            for worker in self._workers:
                # An end that another worker holds open would keep this one from ending.
                worker.tasks.close()
                worker.answers.close()
            os.close(task_write)
            os.close(answer_read)
            _run_worker(parent, (setup, state), task_read, answer_write)
        os.close(task_read)
        os.close(answer_write)
        return _Worker(pid, os.fdopen(task_write, "wb"), os.fdopen(answer_read, "rb"))

    def _serve(self, worker: _Worker) -> None:
        """Hand one worker tasks and pass on what it answers, until there are no more."""
        sent: deque[Future[Any]] = deque()
        with worker.answers, suppress(BrokenPipeError), worker.tasks:
            while True:
                while len(sent) < 2 and (task := self._next(has_work=bool(sent))):
                    if task.future.set_running_or_notify_cancel():
                        sent.append(task.future)
                        _send(worker, task.data)
                if not sent:
                    return
                _receive(worker, sent.popleft())

    def _next(self, *, has_work: bool) -> _Task | None:
        """Return the next task for a worker, None if there are no more.

        One that has work gets another to go on with at once, unless it is one of the last, which
        the others may come to first; or so large that it would wait in the pipe.
        """
        with self._changed:
            while not (self._tasks or has_work or self._no_more):
                self._changed.wait()
            if not self._tasks:
                return None
            if has_work and (
                len(self._tasks) <= len(self._workers) or len(self._tasks[0].data) > AHEAD_BYTES
            ):
                return None
            return self._tasks.popleft()


def _pipe(stack: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


@contextmanager
def _process_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Error(
            f"a worker process of the conversion cannot be started: {error.strerror}",
            hint="the machine may be out of memory, processes or descriptors; use fewer jobs",
        ) from error


def _send(worker: _Worker, data: bytes) -> None:
    # A worker that died is noticed where its answer is missing.
    with suppress(BrokenPipeError):
        worker.tasks.write(data)
        worker.tasks.flush()


def _receive(worker: _Worker, future: Future[Any]) -> None:
    try:
        answer, error = pickle.load(worker.answers)  # noqa: S301 - from our own process
    except Exception:  # noqa: BLE001 - whatever it is, for one MemoryError: somebody waits
        answer = None
        error = Error(
            "a worker process of the conversion died",
            hint="the machine may be out of memory; use fewer jobs",
        )
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)


def _run_worker(
    parent: int, start: tuple[Callable[[T], None], T], task_fd: int, answer_fd: int
) -> NoReturn:
    """Live as a worker.  Nothing of the converter that was forked may run or be cleaned up here."""
    status = FAILED
    try:
        # Tasks make no reference cycles, and what was inherited shall stay shared.
        gc.disable()
        if sys.platform == "linux":
            from lamina.linux.process import set_parent_death_signal

            set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(FAILED)
        # The converter decides what an interrupt means; it ends its workers itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(task_fd, "rb") as tasks, os.fdopen(answer_fd, "wb") as answers:
            _answer(tasks, answers, *start)
        status = 0
    finally:
        os._exit(status)


def _answer(tasks: BinaryIO, answers: BinaryIO, setup: Callable[[T], None], state: T) -> None:
    setup_answer = _run(setup, state)
    usable = setup_answer.is_result
    while True:
        try:
            task, args, kwargs = pickle.load(tasks)  # noqa: S301 - from the process that forked us
        except EOFError:
            return
        parts = _run(task, *args, **kwargs).parts if usable else setup_answer.parts[:]
        del args, kwargs
        # What was written is not kept while the rest waits to be read.
        parts.reverse()
        while parts:
            answers.write(parts.pop())
        answers.flush()


def _run(task: Callable[..., Any], *args: Any, **kwargs: Any) -> _Answer:
    """Do a task; whatever goes wrong is its answer."""
    error: Exception
    try:
        return _Answer(_pickled((task(*args, **kwargs), None)), is_result=True)
    except OSError as failure:
        error = StoreError(
            f"a temporary file cannot be written or read: {failure.strerror}",
            hint=os_hint(failure),
        )
    except Exception as failure:  # noqa: BLE001 - the converter gets it
        error = failure
        if not isinstance(failure, Error):
            import traceback

            error.add_note("".join(traceback.format_exception(failure)))
    try:
        data = pickle.dumps((None, error))
        pickle.loads(data)  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - any failure means that it cannot travel
        data = pickle.dumps((None, Error(str(error), hint=getattr(error, "hint", None))))
    return _Answer([data], is_result=False)


class _Parts(list[Any]):
    """A file for pickle, which hands large bytes on as they are, without a copy."""

    def write(self, data: Any) -> None:
        self.append(data)


def _pickled(value: object) -> list[Any]:
    parts = _Parts()
    pickle.Pickler(parts, PROTOCOL).dump(value)
    return parts
