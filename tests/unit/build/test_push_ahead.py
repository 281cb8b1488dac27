"""Blobs are pushed while they are made; what fails then is pushed in another way, or nowhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.support import fake_registry as fake
from tests.support.fake_registry import FakeRegistry
from tests.unit.registry.images import noise

from lamina.build.blob_output import TemporaryOutput, blob_output
from lamina.build.options import ConvertOptions
from lamina.build.push_ahead import FROM_BYTES
from lamina.errors import AuthError, FetchError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository

DATA = noise(FROM_BYTES + (6 << 20) + 77)
BLOB = m.describe("", DATA)
PART = 1 << 20


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake.fake_registry() as registry:
        yield registry


@pytest.fixture
def repository(registry: FakeRegistry) -> Iterator[RegistryRepository]:
    options = ClientOptions(timeout_s=30, deadline_s=60, push_chunk_bytes=PART)
    reference = parse_reference(f"docker://{registry.host}/a/b")
    with RegistryRepository(reference, options) as repository:
        yield repository


def open_output(
    repository: RegistryRepository, folder: Path, moved: list[int]
) -> closing[TemporaryOutput]:
    output = blob_output(repository, ConvertOptions(work_dir=str(folder)), moved.append)
    assert isinstance(output, TemporaryOutput)
    return closing(output)


def write(output: TemporaryOutput, data: bytes) -> None:
    for start in range(0, len(data), 300_000):
        output.write(data[start : start + 300_000])


def test_most_is_there_before_the_blob_has_its_end(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path
) -> None:
    whole, arrived = len(DATA) // PART * PART, threading.Event()

    def watch(exchange: fake.Exchange) -> bool:
        done = exchange.serve(exchange.registry)
        if len(next(iter(exchange.registry.uploads.values()))) == whole:
            arrived.set()
        return done

    registry.rule("PATCH", "", watch, times=99)
    moved: list[int] = []
    with open_output(repository, tmp_path, moved) as output:
        write(output, DATA)
        assert arrived.wait(300)
        assert not registry.blobs
        output.commit(BLOB)
    assert registry.blobs == {BLOB.digest: DATA}
    assert sum(moved) == len(DATA)
    assert not list(tmp_path.iterdir())


def test_small_blobs_wait_for_their_digest(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path
) -> None:
    with open_output(repository, tmp_path, []) as output:
        write(output, DATA[: FROM_BYTES - 1])
        assert not registry.count("POST")
        output.commit(m.describe("", DATA[: FROM_BYTES - 1]))
    assert len(registry.blobs) == 1


def test_what_is_there_already_is_given_up(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path
) -> None:
    registry.add_blob(DATA)
    moved: list[int] = []
    with open_output(repository, tmp_path, moved) as output:
        write(output, DATA)
        output.commit(BLOB)
    assert not registry.uploads
    assert not registry.count("PUT")
    assert sum(moved) == len(DATA)


def forget(exchange: fake.Exchange) -> bool:
    exchange.registry.uploads.clear()
    return False


@pytest.mark.parametrize(
    ("method", "action"),
    [
        ("PATCH", fake.status(405)),
        ("PATCH", forget),
        ("POST", fake.status(400)),
        ("PUT", fake.status(400)),
    ],
    ids=["no chunks", "forgotten", "no place", "not finished"],
)
def test_an_upload_that_cannot_go_on_is_made_anew_from_the_file(
    registry: FakeRegistry,
    repository: RegistryRepository,
    tmp_path: Path,
    method: str,
    action: fake.Action,
) -> None:
    registry.rule(method, "", action)
    moved: list[int] = []
    with open_output(repository, tmp_path, moved) as output:
        write(output, DATA)
        output.commit(BLOB)
    assert registry.blobs == {BLOB.digest: DATA}
    assert not registry.uploads
    assert sum(moved) == len(DATA)


def test_a_registry_that_refuses_blobs_says_so(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path
) -> None:
    registry.rule("POST", "", fake.status(403, {}, b'{"errors":[{"code":"DENIED"}]}'), times=99)
    with open_output(repository, tmp_path, []) as output:
        write(output, DATA)
        with pytest.raises(AuthError, match="DENIED"):
            output.commit(BLOB)
    assert not registry.blobs


@pytest.mark.parametrize("is_committed", [True, False])
def test_nothing_partial_stays(
    registry: FakeRegistry, repository: RegistryRepository, tmp_path: Path, *, is_committed: bool
) -> None:
    """Neither if the making ends early, nor if the registry drops whatever is uploaded."""
    if is_committed:
        registry.rule("PATCH", "", forget, times=999)
    with open_output(repository, tmp_path, []) as output:
        write(output, DATA)
        if is_committed:
            with pytest.raises(FetchError):
                output.commit(BLOB)
    assert not registry.blobs
    assert not registry.uploads
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "lamina-push"]
