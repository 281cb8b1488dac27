from __future__ import annotations

import pytest

from lamina.errors import FetchError
from lamina.fetch.source import RepositorySource, TimedSource, source_name


class FakeRepository:
    reference = "docker://registry/app"

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int, int]] = []
        self.timeouts: list[float | None] = []

    def read_range(
        self, digest: str, offset: int, size_bytes: int, *, timeout_s: float | None = None
    ) -> bytes:
        self.asked.append((digest, offset, size_bytes))
        self.timeouts.append(timeout_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_repository_is_asked_by_digest() -> None:
    repository = FakeRepository(b"abcd")
    source = RepositorySource(repository)  # type: ignore[arg-type]
    assert source.read_range("f" * 64, 5, 4) == b"abcd"
    assert repository.asked == [("sha256:" + "f" * 64, 5, 4)]
    assert source_name(source) == "docker://registry/app"


@pytest.mark.parametrize("wrong", [b"abc", b"abcde", b""])
def test_a_wrong_length_is_an_error(wrong: bytes) -> None:
    source = RepositorySource(FakeRepository(wrong))  # type: ignore[arg-type]
    with pytest.raises(FetchError, match="docker://registry/app sent"):
        source.read_range("id", 0, 4)


def test_a_repository_is_told_the_time() -> None:
    repository = FakeRepository(b"abcd", b"abcd")
    source = RepositorySource(repository)  # type: ignore[arg-type]
    assert isinstance(source, TimedSource)
    source.read_range_within("id", 0, 4, 2.5)
    source.read_range("id", 0, 4)
    assert repository.timeouts == [2.5, None]


def test_a_source_without_a_name() -> None:
    class Nameless:
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            return b""

    assert source_name(Nameless()) == "Nameless"
