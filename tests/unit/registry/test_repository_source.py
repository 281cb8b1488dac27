from __future__ import annotations

from pathlib import Path

from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.registry.repository_source import RepositorySource
from lamina.source.blob_source import Cost


class FakeRepository:
    reference = parse_reference("docker://registry/app")

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int, int]] = []
        self.timeouts: list[float | None] = []

    def read_into(
        self, digest: str, offset: int, buffer: memoryview, *, timeout_s: float | None = None
    ) -> None:
        self.asked.append((digest, offset, len(buffer)))
        self.timeouts.append(timeout_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        buffer[:] = answer


def test_a_repository_is_asked_by_digest_and_told_the_time() -> None:
    repository = FakeRepository(b"abcd")
    source = RepositorySource(repository)  # type: ignore[arg-type]
    buffer = bytearray(4)
    source.read_into("f" * 64, 5, memoryview(buffer), 2.5)
    assert buffer == b"abcd"
    assert repository.asked == [("sha256:" + "f" * 64, 5, 4)]
    assert repository.timeouts == [2.5]
    assert (source.name, source.cost) == (str(repository.reference), Cost.NETWORK)


def test_a_layout_is_nearer_than_a_registry(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    with open_repository(parse_reference(f"oci:{tmp_path}:tag")) as repository:
        assert RepositorySource(repository).cost == Cost.NODE
