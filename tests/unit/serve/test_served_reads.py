"""Whoever serves, on whatever device: each read gets one answer that the kernel takes."""

from __future__ import annotations

import errno
import queue
import time
from collections.abc import Iterator

import pytest
from tests.support.served_reads import SERVED, TAKEN, WAIT_S, Blob, Kernel, served_reads

from lamina import errors
from lamina.errors import Error
from lamina.source.retry import DeadlineError

MORE_THAN_THREADS = 40


def every_error() -> list[type[Error]]:
    """Each kind of error that a read may end with."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    return [*(kind for kind in found if issubclass(kind, Error)), DeadlineError]


@pytest.fixture(params=SERVED, ids="-".join)
def served(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Kernel, Blob, str]]:
    device, way = request.param
    with served_reads(device, way, monkeypatch) as (kernel, blobs):
        yield kernel, blobs[0], device


def read(kernel: Kernel) -> int:
    """Read something; return the errno of the answer."""
    number = kernel.ask(4096, 4096)
    try:
        answer = kernel.answers.get(timeout=WAIT_S)
    except queue.Empty:
        pytest.fail("the reader waits for ever")
    assert answer.number == number
    return answer.code


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_is_an_answer(served: tuple[Kernel, Blob, str], kind: type[Error]) -> None:
    kernel, blob, device = served
    blob.fails = kind("it does not come")
    for _ in range(MORE_THAN_THREADS):
        code = read(kernel)
        if device == "fanotify":
            assert code == (kind.errno if kind.errno in TAKEN else errno.EIO)
        else:
            assert code == kind.errno
    blob.fails = None
    assert read(kernel) == 0
    assert blob.asked[-1] == (4096, 4096)


def test_a_defect_is_an_answer(served: tuple[Kernel, Blob, str]) -> None:
    kernel, blob, _ = served
    blob.fails = ZeroDivisionError("a defect")
    for _ in range(MORE_THAN_THREADS):
        assert read(kernel) == errno.EIO
    blob.fails = None
    assert read(kernel) == 0


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM, errno.EFAULT, errno.EIO])
def test_an_answer_that_is_refused_is_given_again_as_eio(
    served: tuple[Kernel, Blob, str], code: int
) -> None:
    kernel, _, _ = served
    for _ in range(MORE_THAN_THREADS):
        kernel.refusals.append(code)
        assert read(kernel) == errno.EIO
    assert read(kernel) == 0


def test_an_answer_that_is_refused_twice_ends_no_thread(served: tuple[Kernel, Blob, str]) -> None:
    kernel, _, _ = served
    for _ in range(MORE_THAN_THREADS):
        kernel.refusals += [errno.EINVAL, errno.EINVAL]
        kernel.ask(0, 4096)
        wait_until_refused(kernel)
    assert read(kernel) == 0


def test_a_reader_that_was_killed_gets_no_answer(served: tuple[Kernel, Blob, str]) -> None:
    kernel, _, _ = served
    for _ in range(MORE_THAN_THREADS):
        kernel.refusals.append(errno.ENOENT)
        kernel.ask(0, 4096)
        wait_until_refused(kernel)
    # Nothing was said a second time, or it would come first.
    assert read(kernel) == 0


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EIO])
def test_a_question_that_cannot_be_read_ends_no_thread(
    served: tuple[Kernel, Blob, str], code: int
) -> None:
    kernel, _, _ = served
    # The threads of FUSE are in a read already, and meet the failure at the next.
    kernel.shortages += [code] * MORE_THAN_THREADS
    codes = [read(kernel) for _ in range(MORE_THAN_THREADS)]
    assert codes == [0] * MORE_THAN_THREADS
    while kernel.shortages:
        assert read(kernel) == 0


def wait_until_refused(kernel: Kernel) -> None:
    """Else the next answer would take the refusal that is meant for this one."""
    deadline = time.monotonic() + WAIT_S
    while kernel.refusals:
        assert time.monotonic() < deadline, "nobody has answered"
        time.sleep(0.001)
