"""The registry client against Debian's docker-registry: plain, with a login, with TLS."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.errors import AuthError, FetchError, IntegrityError, NotFoundError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.copy import copy, plan_copy
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from tests.support.registry_server import PASSWORD, USER, RegistryServer, start_registry
from tests.unit.registry.images import make_image, make_index, noise

pytestmark = pytest.mark.tools


def opened(text: str, options: ClientOptions | None = None, *, write: bool = False) -> Repository:
    return open_repository(parse_reference(text), write=write, options=options)


def client(server: RegistryServer, name: str, **options: object) -> RegistryRepository:
    chosen = ClientOptions(**options)  # type: ignore[arg-type]
    return RegistryRepository(parse_reference(server.reference(name)), chosen)


def there_and_back(layout: Path, text: str, options: ClientOptions | None = None) -> None:
    """Push an index and pull it into another layout; all bytes are equal."""
    make_index(layout, "multi")
    back = layout.parent / "back"
    with (
        opened(f"oci:{layout}:multi") as source,
        opened(text, options, write=True) as server,
        opened(f"oci:{back}:multi", write=True) as destination,
    ):
        copy(source, server)
        copy(server, destination)
        assert plan_copy(source) == plan_copy(destination)
    blobs = layout / "blobs" / "sha256"
    for path in (back / "blobs" / "sha256").iterdir():
        assert path.read_bytes() == (blobs / path.name).read_bytes()
    shutil.rmtree(back)


def test_push_and_pull(registry: RegistryServer, tmp_path: Path) -> None:
    there_and_back(tmp_path / "l", registry.reference("registry/plain:v1"))


def test_push_and_pull_with_a_login(registry_with_login: RegistryServer, tmp_path: Path) -> None:
    text = registry_with_login.reference("registry/login:v1")
    there_and_back(tmp_path / "l", text, ClientOptions(username=USER, password=PASSWORD))
    authfile = tmp_path / "auth.json"
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    authfile.write_text(json.dumps({"auths": {registry_with_login.host: {"auth": pair}}}))
    there_and_back(tmp_path / "l", text, ClientOptions(authfile=str(authfile)))
    with pytest.raises(AuthError, match="wants a login"), opened(text) as repository:
        repository.resolve()
    wrong = ClientOptions(username=USER, password="wrong horse")
    with (
        pytest.raises(AuthError, match="refuses the login") as caught,
        opened(text, wrong) as repository,
    ):
        repository.resolve()
    assert "wrong horse" not in str(caught.value)


def test_push_and_pull_with_tls(
    registry_with_tls: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = registry_with_tls.reference("registry/tls:v1")
    options = ClientOptions(ca_file=str(registry_with_tls.ca_file))
    there_and_back(tmp_path / "l", text, options)
    with pytest.raises(FetchError, match="certificate"), opened(text) as repository:
        repository.resolve()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "containers" / "certs.d" / registry_with_tls.host
    folder.mkdir(parents=True)
    assert registry_with_tls.ca_file is not None
    shutil.copy(registry_with_tls.ca_file, folder / "ca.crt")
    there_and_back(tmp_path / "l", text)


def test_ranges_and_large_pushes(registry: RegistryServer) -> None:
    data = noise(5_000_000)
    descriptor = m.describe(m.OCI_LAYER, data)
    with client(registry, "registry/large", push_chunk_bytes=1_000_000) as repository:
        moved: list[int] = []
        repository.push_blob(descriptor, io.BytesIO(data), moved.append)
        assert sum(moved) == len(data)
        assert len(moved) == 5
        assert registry.blob_path(descriptor.digest).read_bytes() == data
        failures: list[BaseException] = []

        def read(first: int) -> None:
            try:
                for offset in range(first, len(data) - 70_000, 300_000):
                    got = repository.read_range(descriptor.digest, offset, 70_000)
                    assert got == data[offset : offset + 70_000]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(number * 999,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        with pytest.raises(FetchError):
            repository.read_range(descriptor.digest, len(data) - 5, 10)
        with pytest.raises(NotFoundError):
            repository.read_range("sha256:" + "0" * 64, 0, 10)


def test_a_changed_blob_at_the_registry(registry: RegistryServer) -> None:
    data = noise(100_000, seed=77)
    descriptor = m.describe(m.OCI_LAYER, data)
    with client(registry, "registry/changed") as repository:
        repository.push_blob(descriptor, io.BytesIO(data))
        path = registry.blob_path(descriptor.digest)
        path.write_bytes(data[:500] + b"!" + data[501:])
        with pytest.raises(IntegrityError), repository.open_blob(descriptor) as stream:
            stream.read()


def test_the_registry_refuses_a_manifest_without_its_blobs(
    registry: RegistryServer, tmp_path: Path
) -> None:
    make_image(tmp_path / "l", seed=99)
    with opened(f"oci:{tmp_path}/l") as source, client(registry, "registry/none") as repository:
        descriptor, data = source.manifest()
        with pytest.raises(FetchError, match="UNKNOWN"):
            repository.push_manifest("v1", descriptor.media_type, data)
        with pytest.raises(NotFoundError):
            repository.resolve("v1")


def test_blobs_are_mounted(registry: RegistryServer, tmp_path: Path) -> None:
    make_image(tmp_path / "l", seed=123)
    with (
        opened(f"oci:{tmp_path}/l") as source,
        client(registry, "registry/first") as first,
        client(registry, "registry/second") as second,
    ):
        copy(source, first, tag="v1")
        layer = plan_copy(source).blobs[1]
        assert not second.has_blob(layer.digest, layer.size)
        assert second.mount_blob(layer, first)
        assert second.has_blob(layer.digest, layer.size)
        assert not second.mount_blob(m.describe("", b"unknown"), first)


def test_an_upload_survives_a_cut_connection(registry: RegistryServer) -> None:
    """A relay drops the connection in the middle of a chunk, as networks do."""
    from tests.unit.registry.relay import dropping_relay

    data = noise(6_000_000, seed=5)
    with dropping_relay(registry.host, drop_after=2_500_000) as (host, drops):
        reference = parse_reference(f"docker://{host}/registry/cut")
        options = ClientOptions(push_chunk_bytes=4 << 20)
        with RegistryRepository(reference, options) as repository:
            moved: list[int] = []
            repository.push_blob(m.describe("", data), io.BytesIO(data), moved.append)
            assert sum(moved) == len(data)
    assert drops
    assert registry.blob_path(m.describe("", data).digest).read_bytes() == data


def test_a_registry_that_restarts(tmp_path: Path) -> None:
    from tests.support import tools

    tools.require_tool("docker-registry")
    data = noise(50_000)
    descriptor = m.describe("", data)
    with start_registry(tmp_path / "r") as server:
        repository = client(server, "a", attempts=2, timeout_s=30.0)
        repository.push_blob(descriptor, io.BytesIO(data))
        assert repository.read_range(descriptor.digest, 0, 10) == data[:10]
    with repository, pytest.raises(FetchError, match="refused"):
        repository.read_range(descriptor.digest, 0, 10)


def test_a_range_costs_little_more_than_the_request(
    registry: RegistryServer, oci_image: Callable[[str], Path]
) -> None:
    """No pause of TCP's delayed acknowledgements (40 ms) and no new connection for each range.

    On a busy machine most requests take longer, but such a pause would be in every one.
    """
    data = noise(1 << 20, seed=9)
    descriptor = m.describe("", data)
    with client(registry, "registry/latency") as repository:
        repository.push_blob(descriptor, io.BytesIO(data))
        for size in (4096, 65536):
            repository.read_range(descriptor.digest, 0, size)
            quick, limit = 0, time.monotonic() + 60
            while quick < 3:
                assert time.monotonic() < limit, "there is a pause in every request"
                started = time.perf_counter()
                repository.read_range(descriptor.digest, quick * 4096, size)
                quick += time.perf_counter() - started < 0.03
            (connections,) = repository.session.pool._idle.values()
            assert len(connections) == 1


@pytest.mark.slow
def test_a_whole_distribution(
    registry: RegistryServer, oci_image: Callable[[str], Path], tmp_path: Path
) -> None:
    layout = oci_image("minbase")
    text = registry.reference("registry/minbase:latest")
    with (
        opened(f"oci:{layout}:latest") as source,
        opened(text, write=True) as server,
        opened(f"oci:{tmp_path}/back:latest", write=True) as destination,
    ):
        pushed = copy(source, server)
        assert copy(server, destination) == pushed
    assert set(os.listdir(tmp_path / "back/blobs/sha256")) == set(
        os.listdir(layout / "blobs/sha256")
    )
