"""Registries of other projects as mirrors that a ``hosts.toml`` names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.registry import mirrored
from tests.support.native_images import build_image, push_image, some_bytes
from tests.support.peer_registries import REGISTRIES, peer_registry
from tests.support.registry_server import start_registry
from tests.support.tools import require_peer, require_tool

pytestmark = pytest.mark.tools

CONTENT = some_bytes(700_000, 1)


@pytest.fixture(autouse=True)
def _nobody_failed_before() -> Iterator[None]:
    mirrored._health.clear()
    yield
    mirrored._health.clear()


def digest_in(layout: Path) -> str:
    index = json.loads((layout / "index.json").read_bytes())
    return str(index["manifests"][0]["digest"])


def name_mirror(folder: Path, registry: str, mirror: str) -> list[str]:
    (folder / registry).mkdir(parents=True)
    (folder / registry / "hosts.toml").write_text(f'[host."http://{mirror}"]\n')
    return ["--hosts-dir", str(folder)]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_mirror_of_a_registry_that_is_away(
    kind: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    layout = tmp_path / "layout"
    push_image(build_image({b"etc/one": CONTENT}), layout)
    (tmp_path / "mirror").mkdir()
    with peer_registry(kind, tmp_path / "mirror") as mirror:
        source = f"oci:{layout}:latest"
        assert main(["-q", "copy", source, f"docker://{mirror.host}/app:1"]) == 0
        hosts = name_mirror(tmp_path / "certs.d", "127.0.0.1:1", mirror.host)
        for number, version in enumerate((":1", f"@{digest_in(layout)}")):
            capfdbinary.readouterr()
            store = f"{tmp_path}/store-{number}"
            where = f"docker://127.0.0.1:1/app{version}"
            assert main(["cat", *hosts, "--store", store, where, "/etc/one"]) == 0
            assert capfdbinary.readouterr().out == CONTENT


def test_the_cache_of_distribution_3(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    require_tool("docker-registry")
    program = str(require_peer("registry"))
    layout = tmp_path / "layout"
    push_image(build_image({b"etc/one": CONTENT}), layout)
    with start_registry(tmp_path / "origin") as origin:
        where = origin.reference("app:1")
        assert main(["-q", "copy", f"oci:{layout}:latest", where]) == 0
        extra = f"proxy: {{remoteurl: 'http://{origin.host}'}}\n"
        with start_registry(tmp_path / "cache", extra=extra, program=program) as cache:
            hosts = name_mirror(tmp_path / "certs.d", origin.host, cache.host)
            capfdbinary.readouterr()
            assert main(["cat", *hosts, "--store", f"{tmp_path}/store", where, "/etc/one"]) == 0
            assert capfdbinary.readouterr().out == CONTENT
