"""``lamina index`` and ``--index``, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from lamina.oci.manifest import parse_image_manifest
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.registry.referrers import fallback_tag, push_referrer
from tests.integration.test_cli_chain import Shell
from tests.integration.test_index import ordinary_image
from tests.support.index_layers import content, lower_layer
from tests.support.lazy_layers import estargz
from tests.support.registry_server import RegistryServer
from tests.support.tools import require_root, require_tool


@pytest.fixture
def lamina(tmp_path: Path) -> Shell:
    ordinary_image(tmp_path / "images", "gzip -6")
    return Shell(tmp_path)


IMAGE = "oci:images:latest"


def graft(folder: Path, digest: str) -> None:
    """Attach an index of ``other`` to ``images``, as somebody who may push could."""
    with (
        open_repository(parse_reference(f"oci:{folder}/other:latest")) as origin,
        open_repository(parse_reference(f"oci:{folder}/images:latest"), write=True) as target,
    ):
        index = parse_image_manifest(origin.manifest(digest)[1])
        for part in (*index.layers, index.config):
            with origin.open_blob(part) as stream:
                target.push_blob(part, stream)
        push_referrer(target, msgspec.structs.replace(index, subject=target.resolve()))


def test_an_image_is_indexed_and_opened_by_its_own_name(lamina: Shell) -> None:
    (made,) = lamina.json("index", "--tag", "index", IMAGE)
    assert made["index_bytes"] < made["layer_bytes"]
    assert made["platform"] == "linux/amd64"
    (facts,) = lamina.json("inspect", IMAGE)
    assert facts["kind"] == "oci"
    assert facts["indexed_by"] == made["digest"]
    assert [blob["ready_chunks"] for blob in facts["blobs"]] == [0, 0]
    assert lamina("cat", IMAGE, "/d/007").stdout == b"seven"
    assert sum(blob["ready_chunks"] for blob in lamina.json("inspect", IMAGE)[0]["blobs"]) > 0
    (named,) = lamina.json("inspect", "oci:images:index")
    assert named["kind"] == "index"
    assert named["subject"] == made["source_digest"] == facts["digest"]
    names = [entry["path"] for entry in lamina.json("ls", "--index", "never", IMAGE, "/d/e")]
    assert names == ["/d/e/hard"]


def test_check_proves_an_index(lamina: Shell) -> None:
    lamina("index", IMAGE)
    (result,) = lamina.json("check", "--data", IMAGE)
    assert result["ok"]
    assert result["read_bytes"] > 3_000_000
    folder = lamina.folder / "images"
    entries = json.loads((folder / "index.json").read_bytes())["manifests"]
    index = next(entry for entry in entries if "artifactType" in entry)
    assert (
        lamina("check", IMAGE, f"oci:images@{index['digest']}").stdout == b"the trees are equal\n"
    )


def test_check_finds_an_index_that_lies(lamina: Shell, tmp_path: Path) -> None:
    ordinary_image(tmp_path / "other", "gzip -6", [lower_layer()])
    (made,) = lamina.json("index", "oci:other:latest")
    graft(tmp_path, made["digest"])
    assert lamina("ls", IMAGE, "/").returncode == 0
    last = lamina.json("check", "--data", IMAGE, code=11)[-2]
    assert not last["ok"]
    assert last["differences"] > 0


def test_always_indexes_here(lamina: Shell) -> None:
    lamina("mount", IMAGE, ".", code=9)
    assert lamina("cat", "--index", "always", IMAGE, "/d/007").stdout == b"seven"
    (facts,) = lamina.json("inspect", IMAGE)
    assert facts["indexed_by"].startswith("sha256:")
    entries = json.loads((lamina.folder / "images" / "index.json").read_bytes())["manifests"]
    assert len(entries) == 1


@pytest.mark.kernel
@pytest.mark.parametrize("use", ["auto", "always"])
def test_an_ordinary_image_is_mounted(use: str, lamina: Shell, registry: RegistryServer) -> None:
    require_root()
    image = registry.reference(f"index/mounted-{use}:1")
    lamina("copy", IMAGE, image)
    if use == "auto":
        lamina("index", image)
    mountpoint = lamina.folder / "mnt"
    mountpoint.mkdir()
    lamina("mount", "--index", use, "--device", "fuse", image, "mnt")
    try:
        assert (mountpoint / "d" / "007").read_bytes() == b"seven"
        assert (mountpoint / "d" / "big").read_bytes() == content(3_400_001, 7)
    finally:
        lamina("umount", "mnt")


@pytest.mark.tools
def test_a_registry_without_the_referrers_api(lamina: Shell, registry: RegistryServer) -> None:
    require_tool("docker-registry")
    image = registry.reference("index/app:1")
    lamina("copy", IMAGE, image)
    assert lamina("cat", "--index", "always", image, "/d/007").stdout == b"seven"
    (facts,) = lamina.json("inspect", image)
    assert [blob["ready_chunks"] for blob in facts["blobs"]] == [
        blob["chunks"] for blob in facts["blobs"]
    ]
    (made,) = lamina.json("index", image)
    assert made["digest"] == facts["indexed_by"]
    listed = registry.reference(f"index/app:{fallback_tag(made['source_digest'])}")
    (raw,) = lamina.json("inspect", "--raw", listed)
    assert [entry["digest"] for entry in raw["manifests"]] == [made["digest"]]
    elsewhere = ("--store", str(lamina.folder / "elsewhere"))
    assert lamina("cat", *elsewhere, image, "/d/007").stdout == b"seven"


def test_what_cannot_be_indexed(lamina: Shell) -> None:
    lamina("index", "--tag", "index", IMAGE)
    assert b"native image or an index already" in lamina("index", "oci:images:index", code=2).stderr
    lamina("index", "--chunk-size", "5000", IMAGE, code=2)
    lamina("index", "--platform", "linux/riscv64", IMAGE, code=7)
    lamina("index", "oci:images:absent", code=7)


def test_it_says_whether_the_layers_were_read(lamina: Shell, tmp_path: Path) -> None:
    ordinary_image(tmp_path / "even", estargz)
    ordinary_image(tmp_path / "uneven", lambda data: estargz(data, 100_000))
    text = lamina("index", "oci:even:latest").stdout
    assert b"tables of contents of the layers, which were not read" in text
    assert lamina("cat", "oci:even:latest", "/d/007").stdout == b"seven"
    (facts,) = lamina.json("index", "--scan", "oci:even:latest")
    assert (facts["by_table"], facts["table_problem"]) == (False, "")
    text = lamina("index", "oci:uneven:latest").stdout
    assert b"the layers were read: files are cut unevenly" in text


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_nothing_is_attached_to_an_archive(lamina: Shell, transport: str) -> None:
    """It is written as a whole only, so it would be lost, or found to have nothing in it."""
    path = lamina.folder / "image.tar"
    lamina("copy", IMAGE, f"{transport}:image.tar:a:1")
    before = path.read_bytes()
    lamina.environment["COSIGN_PASSWORD"] = "secret"
    lamina("key", "generate", "own")
    for words in (("index",), ("sign", "--key", "own.key")):
        said = lamina(*words, f"{transport}:image.tar:a:1", code=2).stderr.decode()
        assert "nothing can be attached" in said
        assert f"lamina copy {transport}:image.tar:a:1 oci:" in said
    assert path.read_bytes() == before
