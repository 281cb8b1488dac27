from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.errors import AuthError, FetchError, IntegrityError, NotFoundError
from lamina.fetch.source import (
    DirectorySource,
    RepositorySource,
    RetryPolicy,
    source_name,
    with_retry,
)

FAST = RetryPolicy(attempts=3, first_pause_s=0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, pause: float) -> None:
        self.pauses.append(pause)
        self.now += pause

    def __call__(self) -> float:
        return self.now


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [error] * times

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    return action


def test_a_failure_is_tried_again() -> None:
    clock = Clock()
    assert with_retry(failing(2, FetchError("x")), FAST, sleep=clock.sleep, clock=clock) == "done"
    assert len(clock.pauses) == 2


def test_attempts_are_bounded() -> None:
    clock = Clock()
    with pytest.raises(FetchError, match="x"):
        with_retry(failing(3, FetchError("x")), FAST, sleep=clock.sleep, clock=clock)
    assert len(clock.pauses) == 2


def test_pauses_grow_to_a_bound() -> None:
    clock = Clock()
    policy = RetryPolicy(attempts=8, first_pause_s=1.0, max_pause_s=4.0, deadline_s=1000)
    with_retry(failing(7, FetchError("x")), policy, sleep=clock.sleep, clock=clock)
    bounds = [1, 2, 4, 4, 4, 4, 4]
    assert all(0 <= pause <= bound for pause, bound in zip(clock.pauses, bounds, strict=True))


def test_no_attempt_starts_after_the_deadline() -> None:
    clock = Clock()
    policy = RetryPolicy(attempts=100, first_pause_s=1.0, max_pause_s=1.0, deadline_s=5.0)
    error = FetchError("x")
    error.retry_after_s = 1.0  # type: ignore[attr-defined]
    with pytest.raises(FetchError):
        with_retry(failing(100, error), policy, sleep=clock.sleep, clock=clock)
    assert clock.pauses == [1.0] * 4, "a registry's wish to be left alone is respected"


@pytest.mark.parametrize("error", [AuthError("no"), NotFoundError("no"), IntegrityError("no")])
def test_what_does_not_pass_is_not_tried_again(error: Exception) -> None:
    clock = Clock()
    with pytest.raises(type(error)):
        with_retry(failing(1, error), FAST, sleep=clock.sleep, clock=clock)
    assert clock.pauses == []


class FakeRepository:
    reference = "docker://registry/app"

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int, int]] = []

    def read_range(self, digest: str, offset: int, size_bytes: int) -> bytes:
        self.asked.append((digest, offset, size_bytes))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_repository_is_asked_by_digest() -> None:
    repository = FakeRepository(b"abcd")
    source = RepositorySource(repository, policy=FAST)  # type: ignore[arg-type]
    assert source.read_range("f" * 64, 5, 4) == b"abcd"
    assert repository.asked == [("sha256:" + "f" * 64, 5, 4)]
    assert source_name(source) == "docker://registry/app"


def test_an_id_that_is_not_the_digest() -> None:
    repository = FakeRepository(b"abcd")
    digests = {"id": "sha256:real"}
    source = RepositorySource(repository, policy=FAST, digests=digests)  # type: ignore[arg-type]
    source.read_range("id", 0, 4)
    assert repository.asked == [("sha256:real", 0, 4)]


@pytest.mark.parametrize("wrong", [b"abc", b"abcde", b""])
def test_a_wrong_length_is_tried_again_and_then_an_error(wrong: bytes) -> None:
    source = RepositorySource(FakeRepository(wrong, b"abcd"), policy=FAST)  # type: ignore[arg-type]
    assert source.read_range("id", 0, 4) == b"abcd"
    source = RepositorySource(FakeRepository(*[wrong] * 3), policy=FAST)  # type: ignore[arg-type]
    with pytest.raises(FetchError, match="docker://registry/app sent"):
        source.read_range("id", 0, 4)


def test_a_directory_of_blobs(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    source = DirectorySource(tmp_path)
    assert source.read_range("blob", 3, 4) == b"3456"
    assert source_name(source) == str(tmp_path)
    with pytest.raises(FetchError, match="2 bytes"):
        source.read_range("blob", 8, 4)
    with pytest.raises(NotFoundError, match="no blob absent"):
        source.read_range("absent", 0, 1)
    with pytest.raises(NotFoundError, match="name of a file"):
        source.read_range("../blob", 0, 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FetchError, match="Is a directory"):
        source.read_range("folder", 0, 1)


def test_a_source_without_a_name() -> None:
    class Nameless:
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            return b""

    assert source_name(Nameless()) == "Nameless"
