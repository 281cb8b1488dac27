"""A few requests in flight at once, with threads that have an owner."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

LOG: Final = logging.getLogger("lamina")

T = TypeVar("T")

CONNECTIONS: Final = 4
"""Requests in flight for one caller: enough to fill a link of 100 MB/s at 20 ms."""

MOST_LATER: Final = 3
"""How many jobs may be waiting that nobody waits for."""


class Parallel:
    """Runs independent items of work; the caller's thread does its share.

    One item never leaves the caller's thread.  Helper threads start at the first call with more and
    end with :meth:`close`.
    """

    def __init__(self, connections: int = CONNECTIONS) -> None:
        self.connections = connections
        self._pool: ThreadPoolExecutor | None = None
        self._aside: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._later = 0

    def run(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call *work* for every item; returns when none is running.

        After the first exception no further item is begun, and it is raised.
        """
        queue = deque(items)

        def drain() -> None:
            try:
                while True:
                    try:
                        item = queue.popleft()
                    except IndexError:
                        return
                    work(item)
            except BaseException:
                queue.clear()
                raise

        helpers = self._start(drain, min(len(queue), self.connections) - 1)
        try:
            drain()
        finally:
            # A helper that has not started is not waited for: others may keep the threads busy.
            started = [helper for helper in helpers if not helper.cancel()]
            outcomes = [helper.exception() for helper in started]
        for error in outcomes:
            if error is not None:
                raise error

    def _start(self, drain: Callable[[], None], count: int) -> list[Future[None]]:
        if count <= 0:
            return []
        with self._lock:
            if self._closed:
                return []
            if self._pool is None:
                self._pool = _threads(self.connections - 1, "lamina-fetch")
            helpers: list[Future[None]] = []
            try:
                helpers.extend(self._pool.submit(drain) for _ in range(count))
            except RuntimeError as error:
                # No thread to be had.  What was queued nonetheless will find nothing to do.
                LOG.debug("fewer connections at a time than wanted: %s", error)
            return helpers

    def later(self, job: Callable[[], None]) -> None:
        """Have a thread of its own call *job* soon; :meth:`close` waits for it.

        Items of :meth:`run` may wait for what *job* does, and *job* for nobody.  The caller does it
        at once where several are waiting: who is slower than his callers must not keep more and
        more memory.
        """
        with self._lock:
            is_taken = not self._closed and self._later < MOST_LATER
            if is_taken:
                self._later += 1
                if self._aside is None:
                    self._aside = _threads(1, "lamina-later")
                is_taken = self._submit_aside(job)
        if not is_taken:
            _do(job)

    def _submit_aside(self, job: Callable[[], None]) -> bool:
        assert self._aside is not None
        try:
            self._aside.submit(self._do_later, job)
        except RuntimeError:
            # No thread to be had, and the job is queued: it must not be done twice.
            self._aside.shutdown(wait=False, cancel_futures=True)
            self._aside = None
            self._later -= 1
            return False
        return True

    def _do_later(self, job: Callable[[], None]) -> None:
        _do(job)
        with self._lock:
            self._later -= 1

    def close(self) -> None:
        """End the helper threads once they are done; may be called again."""
        with self._lock:
            self._closed = True
            pools, self._pool, self._aside = (self._pool, self._aside), None, None
        for pool in pools:
            if pool is not None:
                pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(count, name)


def _do(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception:
        LOG.exception("work that nobody waits for failed")
