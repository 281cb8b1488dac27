"""Images by mirrors that a ``hosts.toml`` names: another registry, and a pull-through cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.registry import mirrored
from tests.support.native_images import build_image, push_image, some_bytes
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.tools import require_tool
from tests.unit.registry.images import make_image, noise

CONTENT = some_bytes(700_000, 1)
FILES = {b"etc/one": CONTENT, b"etc/two": b"two", b"three": some_bytes(500, 3)}


class Cluster:
    """An origin with an image ``app:1``, which can be stopped, and the file that names a mirror."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = ExitStack()
        self.origin = self._running.enter_context(start_registry(folder / "origin"))
        push_image(build_image(FILES), folder / "layout")
        self.copy(self.origin)

    def copy(self, registry: RegistryServer) -> None:
        source = f"oci:{self.folder}/layout:latest"
        assert main(["-q", "copy", source, registry.reference("app:1")]) == 0

    def stop_origin(self) -> None:
        self._running.close()

    def name_mirror(self, host: str, more: str = "") -> None:
        folder = self.folder / "certs.d" / self.origin.host
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(f'[host."http://{host}"]\n{more}\n')

    def cat(self, store: str, *words: str, version: str = ":1") -> int:
        mirrored._health.clear()
        where = f"{self.origin.reference('app')}{version}"
        options = ["--hosts-dir", f"{self.folder}/certs.d", "--store", f"{self.folder}/{store}"]
        return main(["cat", *options, *words, where, "/etc/one"])

    @property
    def digest(self) -> str:
        index = json.loads((self.folder / "layout/index.json").read_bytes())
        return str(index["manifests"][0]["digest"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    require_tool("docker-registry")
    found = Cluster(tmp_path)
    try:
        yield found
    finally:
        found.stop_origin()
        mirrored._health.clear()


def printed(capfdbinary: pytest.CaptureFixture[bytes]) -> bytes:
    return capfdbinary.readouterr().out


def test_a_pull_through_cache(
    cluster: Cluster, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    extra = f"proxy: {{remoteurl: 'http://{cluster.origin.host}'}}\n"
    with start_registry(tmp_path / "cache", extra=extra, access_log=True) as cache:
        cluster.name_mirror(cache.host, 'capabilities = ["pull", "resolve"]')
        printed(capfdbinary)
        # Read to the end, so that the cache keeps it.
        source = cluster.origin.reference("app:1")
        hosts = ("--hosts-dir", f"{tmp_path}/certs.d")
        assert main(["-q", "copy", *hosts, source, f"oci:{tmp_path}/copied:1"]) == 0
        printed(capfdbinary)
        assert f"?ns={cluster.origin.host}" in cache.logged()
        cluster.stop_origin()
        assert cluster.cat("store") == 0
        assert printed(capfdbinary) == CONTENT
        assert cluster.cat("other", version=f"@{cluster.digest}") == 0
        assert printed(capfdbinary) == CONTENT


def test_the_origin_is_down_and_a_mirror_may_not_say_what_a_tag_means(
    cluster: Cluster, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with start_registry(tmp_path / "mirror") as mirror:
        cluster.copy(mirror)
        cluster.name_mirror(mirror.host, 'capabilities = ["pull"]')
        printed(capfdbinary)
        cluster.stop_origin()
        assert cluster.cat("store", version=f"@{cluster.digest}") == 0
        assert printed(capfdbinary) == CONTENT
        assert cluster.cat("other") == 5
        assert printed(capfdbinary) == b""


def test_an_ordinary_image_by_the_index_that_the_mirror_has(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Debian's registry lists what is attached under a tag only, and the origin says nothing."""
    require_tool("docker-registry")
    make_image(tmp_path / "layout")
    folder = tmp_path / "certs.d" / "127.0.0.1:1"
    folder.mkdir(parents=True)
    with start_registry(tmp_path / "mirror") as mirror:
        (folder / "hosts.toml").write_text(f'[host."http://{mirror.host}"]\n')
        there = mirror.reference("app:1")
        assert main(["-q", "copy", f"oci:{tmp_path}/layout:latest", there]) == 0
        hosts = ["--hosts-dir", f"{tmp_path}/certs.d", "--store", f"{tmp_path}/store"]
        words = ["cat", "--index", "auto", *hosts, "docker://127.0.0.1:1/app:1", "/a"]
        printed(capfdbinary)
        assert main(words) == 0
        assert printed(capfdbinary) == noise(5000, 1)
        # Only a native image or an indexed one can be fetched into the store.
        prefetch = ["prefetch", *hosts, "docker://127.0.0.1:1/app:1", "/a"]
        assert main(prefetch) != 0
        assert main(["-q", "index", there]) == 0
        mirrored._health.clear()
        assert main(prefetch) == 0
        printed(capfdbinary)
        assert main(words) == 0
        assert printed(capfdbinary) == noise(5000, 1)


def test_a_mirror_that_lies(
    cluster: Cluster, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with start_registry(tmp_path / "mirror") as mirror:
        cluster.copy(mirror)
        manifest = json.loads((tmp_path / "layout/blobs/sha256" / cluster.digest[7:]).read_bytes())
        damaged = [mirror.blob_path(each["digest"]) for each in manifest["layers"]]
        whole = [path.read_bytes() for path in damaged]
        cluster.name_mirror(mirror.host)
        for number, path in enumerate(damaged):
            # Each alone: who was caught with one is not asked for the next.
            for other, data in zip(damaged, whole, strict=True):
                other.write_bytes(data)
            path.write_bytes(bytes(byte ^ 1 for byte in whole[number]))
            printed(capfdbinary)
            assert cluster.cat(f"store-{number}") == 0
            out, err = capfdbinary.readouterr()
            assert out == CONTENT
            assert f"{cluster.origin.host}/app:1 at {mirror.host}".encode() in err


def test_a_mirror_that_is_down(
    cluster: Cluster,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.name_mirror("127.0.0.1:1")
    printed(capfdbinary)
    assert cluster.cat("store") == 0
    assert printed(capfdbinary) == CONTENT
    monkeypatch.setenv("LAMINA_HOSTS_DIR", f"{tmp_path}/certs.d")
    (tmp_path / "certs.d" / cluster.origin.host / "hosts.toml").write_text("host = 1")
    where = cluster.origin.reference("app:1")
    assert main(["cat", "--store", f"{tmp_path}/other", where, "/etc/one"]) == 3
    assert b"hosts.toml is malformed" in capfdbinary.readouterr().err
