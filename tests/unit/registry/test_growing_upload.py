"""Pushing a blob that is still being made: in chunks, on after failures, and named at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lamina.errors import FetchError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.growing_upload import GrowingUpload
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry
from tests.unit.registry.images import noise

CHUNK = 100_000
DATA = noise(3 * CHUNK + 1234)
REST = DATA[3 * CHUNK :]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture
def repository(registry: FakeRegistry) -> Iterator[RegistryRepository]:
    options = ClientOptions(timeout_s=30, deadline_s=60, push_chunk_bytes=CHUNK)
    reference = parse_reference(f"docker://{registry.host}/a/b")
    with RegistryRepository(reference, options) as repository:
        yield repository


def append_all(upload: GrowingUpload) -> None:
    upload.begin()
    assert upload.least_bytes == upload.most_bytes == CHUNK
    for start in range(0, 3 * CHUNK, CHUNK):
        upload.append(DATA[start : start + CHUNK])


@pytest.mark.parametrize(
    "failures",
    [[], [fake.status(502)], [fake.reset()], [fake.take_part(70_000), fake.status(503)]],
    ids=["none", "502", "reset", "part"],
)
def test_what_was_appended_is_stored(
    registry: FakeRegistry, repository: RegistryRepository, failures: list[fake.Action]
) -> None:
    for action in failures:
        registry.rule("PATCH", "", action)
    moved: list[int] = []
    upload = repository.start_upload(moved.append)
    append_all(upload)
    assert not registry.blobs
    upload.finish(m.describe("", DATA), REST)
    upload.cancel()
    assert registry.blobs == {m.describe("", DATA).digest: DATA}
    assert sum(moved) == len(DATA)


@pytest.mark.parametrize("rest", [REST[:-1], REST + b"x", REST[:-1] + b"?"])
def test_a_blob_that_has_another_digest_gets_no_name(
    registry: FakeRegistry, repository: RegistryRepository, rest: bytes
) -> None:
    moved: list[int] = []
    upload = repository.start_upload(moved.append)
    append_all(upload)
    with pytest.raises(FetchError):
        upload.finish(m.describe("", DATA), rest)
    upload.cancel()
    assert not registry.blobs
    assert not registry.uploads
    assert sum(moved) == 0


def forget(exchange: fake.Exchange) -> bool:
    exchange.registry.uploads.clear()
    return False


@pytest.mark.parametrize("action", [fake.status(405), forget], ids=["no chunks", "forgotten"])
def test_a_registry_that_cannot_go_on_is_an_error(
    registry: FakeRegistry, repository: RegistryRepository, action: fake.Action
) -> None:
    registry.rule("PATCH", f"state={CHUNK}", action)
    upload = repository.start_upload()
    with pytest.raises(FetchError):
        append_all(upload)
    upload.cancel()
    assert not registry.uploads


def test_chunks_have_the_least_size_that_the_registry_wants(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    def begin(exchange: fake.Exchange) -> bool:
        exchange.registry.uploads["it"] = bytearray()
        place = {**exchange.progress("a/b", "it", 0), "OCI-Chunk-Min-Length": str(2 * CHUNK)}
        return exchange.answer(202, b"", place)

    registry.rule("POST", "", begin)
    upload = repository.start_upload()
    upload.begin()
    assert upload.least_bytes == upload.most_bytes == 2 * CHUNK
    with pytest.raises(FetchError, match="wants chunks"):
        upload.append(DATA[:CHUNK])
    upload.append(DATA[: 2 * CHUNK])
    upload.finish(m.describe("", DATA), DATA[2 * CHUNK :])
    assert registry.blobs == {m.describe("", DATA).digest: DATA}
