"""skopeo reads what Lamina writes, and writes what Lamina reads: every transport, both ways."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.copy import copy, plan_copy
from lamina.registry.open_repository import open_repository
from tests.support import tools
from tests.support.registry_server import RegistryServer
from tests.unit.registry.images import make_image, make_index

pytestmark = pytest.mark.tools


@pytest.fixture(autouse=True)
def _needs_skopeo() -> None:
    tools.require_tool("skopeo")


def skopeo(*words: str) -> str:
    command = ["skopeo", words[0], *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def skopeo_copy(source: str, destination: str, *options: str) -> None:
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
    skopeo("copy", "--quiet", *plain, *options, source, destination)


def lamina_copy(source: str, destination: str) -> m.Descriptor:
    with (
        open_repository(parse_reference(source)) as one,
        open_repository(parse_reference(destination), write=True) as other,
    ):
        return copy(one, other)


def image_id(text: str) -> str:
    """The digest of the configuration: the same in every form of an image."""
    with open_repository(parse_reference(text)) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
        for blob in (manifest.config, *manifest.layers):
            with repository.open_blob(blob) as stream:
                assert len(stream.read()) == blob.size
        return manifest.config.digest


@pytest.fixture
def layout(tmp_path: Path) -> str:
    make_image(tmp_path / "l", "v1", seed=42)
    return f"oci:{tmp_path}/l:v1"


def place(kind: str, server: RegistryServer, folder: Path, name: str) -> str:
    return {
        "docker": server.reference(f"skopeo/{name}:v1"),
        "oci": f"oci:{folder}/{name}:v1",
        "oci-archive": f"oci-archive:{folder}/{name}-oci.tar:v1",
        "docker-archive": f"docker-archive:{folder}/{name}-docker.tar:some/name:v1",
    }[kind]


KINDS = ["docker", "oci", "oci-archive", "docker-archive"]


@pytest.mark.parametrize("kind", KINDS)
def test_skopeo_reads_ours(
    registry: RegistryServer, layout: str, tmp_path: Path, kind: str
) -> None:
    ours = place(kind, registry, tmp_path, f"ours-{kind}")
    lamina_copy(layout, ours)
    skopeo_copy(ours, f"oci:{tmp_path}/read:v1")
    assert image_id(f"oci:{tmp_path}/read:v1") == image_id(layout)
    shown = json.loads(skopeo("inspect", "--tls-verify=false", "--config", ours))
    assert shown["architecture"] == "amd64"


@pytest.mark.parametrize("kind", KINDS)
def test_we_read_skopeos(registry: RegistryServer, layout: str, tmp_path: Path, kind: str) -> None:
    theirs = place(kind, registry, tmp_path, f"theirs-{kind}")
    skopeo_copy(layout, theirs)
    lamina_copy(theirs, f"oci:{tmp_path}/read:v1")
    assert image_id(f"oci:{tmp_path}/read:v1") == image_id(layout)
    assert image_id(theirs) == image_id(layout)


def test_docker_media_types(registry: RegistryServer, layout: str, tmp_path: Path) -> None:
    theirs = registry.reference("skopeo/v2s2:v1")
    skopeo_copy(layout, theirs, "--format", "v2s2")
    done = lamina_copy(theirs, f"oci:{tmp_path}/read:v1")
    assert done.media_type == m.DOCKER_MANIFEST
    lamina_copy(theirs, registry.reference("skopeo/again:v1"))
    again = skopeo("inspect", "--tls-verify=false", "--raw", registry.reference("skopeo/again:v1"))
    assert m.describe("", again.encode()).digest == done.digest


def test_zstd_layers_to_a_docker_archive(layout: str, tmp_path: Path) -> None:
    skopeo_copy(layout, f"oci:{tmp_path}/z:v1", "--dest-compress-format", "zstd")
    lamina_copy(f"oci:{tmp_path}/z:v1", f"docker-archive:{tmp_path}/z.tar:x:1")
    with tarfile.open(tmp_path / "z.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".tar")]
        for name in names:
            member = tar.extractfile(name)
            assert member is not None
            with tarfile.open(fileobj=member) as inner:
                assert inner.getnames() in (["a"], ["b"])
    assert len(names) == 2
    skopeo_copy(f"docker-archive:{tmp_path}/z.tar:x:1", f"oci:{tmp_path}/read:v1")
    assert image_id(f"oci:{tmp_path}/read:v1") == image_id(layout)


def test_indexes(registry: RegistryServer, tmp_path: Path) -> None:
    made = make_index(tmp_path / "l", "multi")
    text = registry.reference("skopeo/index:v1")
    lamina_copy(f"oci:{tmp_path}/l:multi", text)
    skopeo_copy(text, f"oci-archive:{tmp_path}/all.tar:v1", "--all")
    with (
        open_repository(parse_reference(f"oci-archive:{tmp_path}/all.tar:v1")) as theirs,
        open_repository(parse_reference(f"oci:{tmp_path}/l:multi")) as ours,
    ):
        assert theirs.resolve().digest == made.digest
        assert plan_copy(theirs).manifests[-1][1] == plan_copy(ours).manifests[-1][1]
    lamina_copy(f"oci-archive:{tmp_path}/all.tar:v1", f"oci:{tmp_path}/back:multi")


def test_tags_of_both_stay_in_one_layout(layout: str, tmp_path: Path) -> None:
    skopeo_copy(layout, f"oci:{tmp_path}/shared:theirs")
    lamina_copy(layout, f"oci:{tmp_path}/shared:ours")
    skopeo_copy(layout, f"oci:{tmp_path}/shared:theirs2")
    for tag in ("theirs", "ours", "theirs2"):
        assert image_id(f"oci:{tmp_path}/shared:{tag}") == image_id(layout)
    assert json.loads(skopeo("inspect", "--raw", f"oci:{tmp_path}/shared:ours"))["layers"]
