"""Push, copy back, ranges and mounts against the registries of other projects."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import FetchError, IntegrityError, NotFoundError, UnsupportedError
from lamina.http.client_options import ClientOptions
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository
from lamina.registry.copy import copy, plan_copy
from lamina.registry.layout import LayoutRepository
from lamina.registry.open_repository import open_repository
from tests.support.peer_registries import REGISTRIES, Running, peer_registry
from tests.unit.registry.images import make_index, noise
from tests.unit.registry.relay import dropping_relay

pytestmark = pytest.mark.tools

LARGE = noise(20 << 20)


@pytest.fixture(scope="module", params=REGISTRIES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with peer_registry(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with a layer of 20 MiB that does not compress, as ``large``; an index, as
    ``multi``.
    """
    path = tmp_path_factory.mktemp("images") / "layout"
    make_index(path, "multi")
    with LayoutRepository(parse_reference(f"oci:{path}"), write=True) as repository:
        layer = m.describe(m.OCI_LAYER, LARGE)
        repository.push_blob(layer, io.BytesIO(LARGE))
        diff_ids = (layer.digest,)
        config = m.encode(
            m.ImageConfig(os="linux", architecture="amd64", rootfs=m.RootFS(diff_ids=diff_ids))
        )
        described = m.describe(m.OCI_CONFIG, config)
        repository.push_blob(described, io.BytesIO(config))
        manifest = m.Manifest(
            schema_version=2, media_type=m.OCI_MANIFEST, config=described, layers=(layer,)
        )
        repository.push_manifest("large", m.OCI_MANIFEST, m.encode(manifest))
    return path


def opened(server: Running, name: str, **options: object) -> RegistryRepository:
    chosen = ClientOptions(**options)  # type: ignore[arg-type]
    reference = parse_reference(f"docker://{server.host}/{name}")
    return RegistryRepository(reference, chosen, write=True)


def layout_of(path: Path, tag: str, *, write: bool = False) -> LayoutRepository:
    return LayoutRepository(parse_reference(f"oci:{path}:{tag}"), write=write)


@pytest.mark.parametrize("tag", ["large", "multi"])
def test_there_and_back(server: Running, layout: Path, tmp_path: Path, tag: str) -> None:
    with (
        layout_of(layout, tag) as source,
        opened(server, f"there/{tag}:v1") as there,
        layout_of(tmp_path / "back", tag, write=True) as back,
    ):
        pushed = copy(source, there)
        assert there.resolve() == pushed
        assert copy(there, back) == pushed
        assert plan_copy(back) == plan_copy(source)
    blobs = layout / "blobs" / "sha256"
    for path in (tmp_path / "back" / "blobs" / "sha256").iterdir():
        assert path.read_bytes() == (blobs / path.name).read_bytes()


@pytest.mark.parametrize("chunk_bytes", [3 << 20, 16 << 20, 64 << 20])
def test_chunks_of_any_size(server: Running, chunk_bytes: int) -> None:
    data = noise(10_000_001, chunk_bytes)
    moved: list[int] = []
    with opened(server, "chunks/of", push_chunk_bytes=chunk_bytes) as repository:
        repository.push_blob(m.describe("", data), io.BytesIO(data), moved.append)
        assert sum(moved) == len(data)
        with repository.open_blob(m.describe("", data)) as stream:
            assert stream.read() == data


def test_a_push_goes_on_after_a_break(server: Running) -> None:
    """Also at registries that cannot be asked how far an upload has got."""
    data = noise(10_000_001, 11)
    with (
        dropping_relay(server.host, drop_after=5_000_000) as (host, drops),
        opened(server._replace(host=host), "push/broken", push_chunk_bytes=3 << 20) as repository,
    ):
        repository.push_blob(m.describe("", data), io.BytesIO(data))
        assert drops
    with opened(server, "push/broken") as repository:
        assert repository.read_range(m.describe("", data).digest, 0, len(data)) == data


def test_reading_goes_on_after_a_break(server: Running) -> None:
    """Also at registries that know no ranges without an end."""
    data = noise(10_000_001, 12)
    with opened(server, "read/broken") as repository:
        repository.push_blob(m.describe("", data), io.BytesIO(data))
    with (
        dropping_relay(server.host, drop_after=5_000_000, answers=True) as (host, drops),
        opened(server._replace(host=host), "read/broken") as repository,
        repository.open_blob(m.describe("", data)) as stream,
    ):
        assert stream.read() == data
        assert drops


def test_all_in_one_request(server: Running) -> None:
    """What is left where a registry takes no chunks."""
    data = noise(10_000_001, 9)
    with opened(server, "all/in-one") as repository:
        repository._habits.whole = True
        repository.push_blob(m.describe("", data), io.BytesIO(data))
        with repository.open_blob(m.describe("", data)) as stream:
            assert stream.read() == data


@pytest.mark.parametrize("size", [100, 2_000_000])
def test_wrong_bytes_are_not_stored(server: Running, size: int) -> None:
    data = noise(size, 3)
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    with opened(server, "wrong/bytes") as repository:
        with pytest.raises(IntegrityError):
            repository.push_blob(m.describe("", data), io.BytesIO(wrong))
        assert not repository.has_blob(m.describe("", data).digest, len(data))


def test_ranges(server: Running) -> None:
    digest = m.describe("", LARGE).digest
    size = len(LARGE)
    with opened(server, "some/ranges") as repository:
        repository.push_blob(m.describe("", LARGE), io.BytesIO(LARGE))
        for offset, count in ((0, 1), (0, 4096), (9 << 20, 1 << 20), (size - 1, 1), (5, size - 5)):
            assert repository.read_range(digest, offset, count) == LARGE[offset : offset + count]
        for offset in (size - 5, size, size + 5):
            with pytest.raises(FetchError):
                repository.read_range(digest, offset, 10)
        with pytest.raises(NotFoundError):
            repository.read_range("sha256:" + "0" * 64, 0, 1)


def test_images_of_another_repository(server: Running, layout: Path) -> None:
    """Whether the registry mounts blobs or wants them again, they are there afterwards."""
    with (
        layout_of(layout, "large") as source,
        opened(server, "mount/from:v1") as first,
        opened(server, "mount/to:v1") as second,
    ):
        pushed = copy(source, first)
        assert copy(first, second) == pushed
        for blob in plan_copy(source).blobs:
            with second.open_blob(blob) as stream:
                assert len(stream.read()) == blob.size
        assert not second.mount_blob(m.describe("", b"what nobody has"), first)


def test_blobs_by_sha512(server: Running) -> None:
    """Either they are there by this name, or the push says that they are not."""
    for data in (noise(1000, 4), noise(3_000_000, 5)):
        digest = "sha512:" + hashlib.sha512(data).hexdigest()
        blob = m.Descriptor(media_type=m.OCI_LAYER, digest=digest, size=len(data))
        with opened(server, "by/sha512") as repository:
            try:
                repository.push_blob(blob, io.BytesIO(data))
            except UnsupportedError:
                continue
            with repository.open_blob(blob) as stream:
                assert stream.read() == data


def test_a_login_is_not_needed_to_look(server: Running) -> None:
    name = f"docker://{server.host}/no/such:tag"
    with (
        open_repository(parse_reference(name)) as repository,
        pytest.raises(NotFoundError),
    ):
        repository.resolve()
