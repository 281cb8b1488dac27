"""What is waited for, and what is an error at once."""

from __future__ import annotations

import threading

import pytest

from lamina.errors import AuthError, Error, FetchError, IntegrityError, StoreError
from lamina.serve.patience import is_passing, read_patiently


class PassingError(FetchError):
    transient = True


class BusyError(PassingError):
    retry_after_s = 3600.0


class Disk:
    """Fails some times before it answers."""

    def __init__(self, *failures: Error) -> None:
        self.failures = list(failures)

    def read_into(self, offset: int, buffer: memoryview, /) -> int:
        if self.failures:
            raise self.failures.pop(0)
        buffer[:] = b"right"
        return 5


def test_only_what_time_may_cure_is_waited_for() -> None:
    assert is_passing(PassingError("no answer"))
    assert is_passing(StoreError("full"))
    for error in (AuthError("no"), IntegrityError("wrong"), FetchError("refused"), Error("x")):
        assert not is_passing(error)


def test_a_failure_that_passes_is_no_error() -> None:
    buffer = memoryview(bytearray(5))
    assert read_patiently(Disk(PassingError("a")), 0, buffer, threading.Event()) == 5
    assert bytes(buffer) == b"right"


def test_wrong_bytes_the_end_and_patience_that_is_over_are_errors() -> None:
    buffer = memoryview(bytearray(5))
    ended = threading.Event()
    with pytest.raises(IntegrityError):
        read_patiently(Disk(IntegrityError("wrong")), 0, buffer, ended)
    with pytest.raises(PassingError):
        read_patiently(Disk(PassingError("a")), 0, buffer, ended, give_up_s=0)
    ended.set()
    with pytest.raises(PassingError):
        read_patiently(Disk(PassingError("a")), 0, buffer, ended)


def test_who_gives_up_is_not_kept_by_a_registry_that_wants_to_be_left_alone() -> None:
    waits: list[float] = []

    class Ended(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            return super().wait(min(timeout, 0.05))

    disk = Disk(*[BusyError("busy") for _ in range(100)])
    with pytest.raises(BusyError):
        read_patiently(disk, 0, memoryview(bytearray(5)), Ended(), give_up_s=0.1)
    assert waits and max(waits) <= 0.1
