"""Work that a caller waits for no longer than it wants to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from lamina.errors import FetchError

Result = TypeVar("Result")


class Call(Protocol):
    """Somebody who waits for an answer: what :class:`grpc.ServicerContext` has of it."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have ``callback`` called when nobody waits any more; False if that is so already."""


class CallEndedError(FetchError):
    """The caller has given up, or its deadline has come."""


class Flights:
    """Work that is done once for all who ask for the same at a time.

    It is done in a thread of its own, and goes on when nobody waits for it any more: what it has
    fetched by then is in the store, for whoever asks next.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Future[object]] = {}

    def wait(self, key: Hashable, work: Callable[[], Result], call: Call) -> Result:
        """Return what ``work`` does, or what somebody else's work of the same key did.

        Raises what it raises, and CallEndedError when the caller goes.
        """
        future = self._join(key, work)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not call.add_callback(done.set):
            done.set()
        done.wait()
        if not future.done():
            raise CallEndedError("the caller did not wait until the image was there")
        result: Result = future.result()  # type: ignore[assignment]
        return result

    def _join(self, key: Hashable, work: Callable[[], object]) -> Future[object]:
        with self._lock:
            future = self._flights.get(key)
            if future is not None:
                return future
            future = self._flights[key] = Future()
        threading.Thread(target=self._fly, args=(key, work, future), daemon=True).start()
        return future

    def _fly(self, key: Hashable, work: Callable[[], object], future: Future[object]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._land(key)
            future.set_exception(error)
        else:
            self._land(key)
            future.set_result(result)

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._flights[key]
