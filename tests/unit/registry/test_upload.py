"""Pushing blobs: whole, in chunks, on after failures; never wrong bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import BinaryIO, cast

import pytest

from lamina.errors import AuthError, Error, FetchError, IntegrityError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry import upload
from lamina.registry.client import RegistryRepository
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry
from tests.unit.registry.images import noise

SMALL = noise(5000)
LARGE = noise(1_500_000)
CHUNK = 400_000


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


class Pipe(io.RawIOBase):
    """A source that cannot seek and gives less than it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._source.read(min(size, 100_000))


def push(repository: RegistryRepository, data: bytes, source: BinaryIO | None = None) -> list[int]:
    moved: list[int] = []
    repository.push_blob(m.describe("", data), source or io.BytesIO(data), moved.append)
    return moved


def stored(registry: FakeRegistry, data: bytes) -> bool:
    return registry.blobs.get("sha256:" + hashlib.sha256(data).hexdigest()) == data


@pytest.mark.parametrize("size", [0, 1, upload.SMALL_BYTES])
def test_small_blobs_are_one_request(
    registry: FakeRegistry, repository: RegistryRepository, size: int
) -> None:
    data = noise(size)
    assert sum(push(repository, data)) == size
    assert stored(registry, data)
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD", "POST", "PUT"]


@pytest.mark.parametrize("size", [upload.SMALL_BYTES + 1, 3 * CHUNK, 4 * CHUNK + 1])
def test_large_blobs_are_chunks(
    registry: FakeRegistry, repository: RegistryRepository, size: int
) -> None:
    data = noise(size)
    moved = push(repository, data, cast("BinaryIO", Pipe(data)))
    assert sum(moved) == size
    assert stored(registry, data)
    patches = [seen for seen in registry.seen if seen.method == "PATCH"]
    assert len(patches) == -(-size // CHUNK)
    assert patches[1].headers["content-range"] == f"{CHUNK}-{2 * CHUNK - 1}"
    assert not registry.uploads


@pytest.mark.parametrize("pushed", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("wrong", ["flip", "short", "long", "empty"])
def test_wrong_bytes_are_not_pushed(
    registry: FakeRegistry, repository: RegistryRepository, pushed: bytes, wrong: str
) -> None:
    source = {
        "flip": pushed[:-1] + bytes([pushed[-1] ^ 1]),
        "short": pushed[:-1],
        "long": pushed + b"x",
        "empty": b"",
    }[wrong]
    with pytest.raises(IntegrityError):
        push(repository, pushed, io.BytesIO(source))
    assert not registry.blobs
    assert not registry.uploads


@pytest.mark.parametrize(
    "failures",
    [
        [fake.status(502)],
        [fake.reset()],
        [fake.take_part(100_000)],
        [fake.take_part(0), fake.take_part(50_000), fake.status(503)],
        [fake.take_part(CHUNK)],
    ],
    ids=["502", "reset", "part", "three", "all-but-the-answer"],
)
@pytest.mark.parametrize("which", [0, 2])
def test_a_chunk_goes_on_where_the_registry_is(
    registry: FakeRegistry,
    repository: RegistryRepository,
    failures: list[fake.Action],
    which: int,
) -> None:
    where = rf"state={which * CHUNK}$"
    for action in failures:
        registry.rule("PATCH", where if action is failures[0] else "state=", action)
    moved = push(repository, LARGE, cast("BinaryIO", Pipe(LARGE)))
    assert sum(moved) == len(LARGE)
    assert stored(registry, LARGE)
    assert registry.count("GET", "uploads/") >= 1


def test_only_the_rest_is_sent_again(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.rule("PATCH", "", fake.take_part(300_000))
    push(repository, LARGE)
    ranges = [s.headers["content-range"] for s in registry.seen if s.method == "PATCH"]
    assert ranges[:2] == [f"0-{CHUNK - 1}", f"300000-{CHUNK - 1}"]


def test_a_registry_that_stores_less_than_it_got(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    def part(exchange: fake.Exchange) -> bool:
        exchange.body = exchange.body[:1000]
        return False

    registry.rule("PATCH", "", part)
    push(repository, LARGE)
    assert stored(registry, LARGE)


def test_another_offset(registry: FakeRegistry, repository: RegistryRepository) -> None:
    registry.rule("PATCH", f"state={CHUNK}", fake.status(416))
    push(repository, LARGE)
    assert stored(registry, LARGE)


def forget(exchange: fake.Exchange) -> bool:
    exchange.registry.uploads.clear()
    return False


def test_a_forgotten_upload_starts_over(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    registry.rule("PATCH", f"state={2 * CHUNK}", forget)
    moved = push(repository, LARGE)
    assert stored(registry, LARGE)
    assert sum(moved) == len(LARGE)
    assert min(moved) < 0
    registry.blobs.clear()
    registry.rule("PATCH", "", forget)
    with pytest.raises(FetchError):
        push(repository, LARGE, cast("BinaryIO", Pipe(LARGE)))


def test_starting_over_ends(registry: FakeRegistry, repository: RegistryRepository) -> None:
    registry.rule("PATCH", "", forget, times=99)
    with pytest.raises(FetchError):
        push(repository, LARGE)
    assert registry.count("POST") == 3


def test_a_lost_answer_to_the_last_request(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    def finish_and_break(exchange: fake.Exchange) -> bool:
        exchange.wfile = io.BytesIO()  # type: ignore[assignment]
        exchange.serve(exchange.registry)
        return exchange.reset()

    registry.rule("PUT", "", finish_and_break)
    push(repository, LARGE)
    assert stored(registry, LARGE)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("action", [fake.status(503), fake.reset(), fake.status(429)])
@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
def test_every_request_is_tried_again(
    registry: FakeRegistry,
    repository: RegistryRepository,
    method: str,
    action: fake.Action,
    data: bytes,
) -> None:
    registry.rule(method, "", action, times=2)
    push(repository, data)
    assert stored(registry, data)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_refusal(
    registry: FakeRegistry, repository: RegistryRepository, method: str, data: bytes
) -> None:
    registry.rule(method, "", fake.status(403, {}, b'{"errors":[{"code":"DENIED"}]}'))
    with pytest.raises(AuthError, match="DENIED"):
        push(repository, data)
    assert not registry.blobs


def test_a_refusal_in_the_middle_of_a_body(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    def refuse(exchange: fake.Exchange) -> bool:
        exchange.answer(403, b'{"errors":[{"code":"TOO_LARGE"}]}', {"Connection": "close"})
        return exchange.reset()

    refuse.read_limit = 1000  # type: ignore[attr-defined]
    registry.rule("PATCH", "", refuse, times=9)
    with pytest.raises(Error):
        push(repository, LARGE)
    assert not registry.blobs


@pytest.mark.parametrize("headers", [{}, {"Location": "ftp://x/"}])
def test_no_place_to_upload_to(
    registry: FakeRegistry, repository: RegistryRepository, headers: dict[str, str]
) -> None:
    registry.rule("POST", "", fake.status(202, headers))
    with pytest.raises(FetchError):
        push(repository, SMALL)


def test_a_registry_that_stores_something_else(
    registry: FakeRegistry, repository: RegistryRepository
) -> None:
    headers = {"Docker-Content-Digest": "sha256:" + "0" * 64}
    registry.rule("PUT", "", fake.status(201, headers))
    with pytest.raises(IntegrityError):
        push(repository, SMALL)


def test_the_token_of_a_push_may_push(registry: FakeRegistry) -> None:
    registry.token = "t"
    reference = parse_reference(f"docker://{registry.host}/a/b")
    with RegistryRepository(reference, ClientOptions(push_chunk_bytes=CHUNK)) as repository:
        push(repository, LARGE)
    assert stored(registry, LARGE)
    scopes = [seen.path for seen in registry.seen if seen.path.startswith("/token")]
    assert len(scopes) == 1
    assert "pull%2Cpush" in scopes[0]
