"""OCI and docker archives: read in place, written whole or not at all, damaged ones refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from lamina.errors import (
    Error,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.copy import copy
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from tests.unit.registry.images import make_image, make_index, tar_layer


def opened(text: str, *, write: bool = False) -> Repository:
    return open_repository(parse_reference(text), write=write)


def copied(source: str, destination: str) -> m.Descriptor:
    with opened(source) as one, opened(destination, write=True) as other:
        return copy(one, other)


def read_image(text: str) -> list[bytes]:
    """Configuration and layers, verified, each read as a stream and as ranges."""
    with opened(text) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
        contents = []
        for blob in (manifest.config, *manifest.layers):
            with repository.open_blob(blob) as stream:
                contents.append(stream.read())
            half = blob.size // 2
            halves = repository.read_range(blob.digest, 0, half)
            halves += repository.read_range(blob.digest, half, blob.size - half)
            assert halves == contents[-1]
    return contents


def members(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_oci_archive_round_trip(tmp_path: Path) -> None:
    made = make_image(tmp_path / "l", "v1")
    path = tmp_path / "new" / "image.tar"
    assert copied(f"oci:{tmp_path}/l:v1", f"oci-archive:{path}:v2").digest == made.digest
    assert members(path)[:2] == ["oci-layout", "index.json"]
    assert read_image(f"oci-archive:{path}:v2") == read_image(f"oci:{tmp_path}/l:v1")
    assert os.listdir(path.parent) == ["image.tar"]
    copied(f"oci:{tmp_path}/l:v1", f"oci-archive:{tmp_path}/again.tar:v2")
    assert (tmp_path / "again.tar").read_bytes() == path.read_bytes()


def test_oci_archive_of_an_index(tmp_path: Path) -> None:
    made = make_index(tmp_path / "l")
    copied(f"oci:{tmp_path}/l:multi", f"oci-archive:{tmp_path}/a.tar")
    with opened(f"oci-archive:{tmp_path}/a.tar") as repository:
        descriptor, data = repository.manifest()
        assert descriptor.digest == made.digest
        for entry in m.parse_index(data).manifests:
            repository.manifest(entry)


def test_nothing_is_written_after_an_error(tmp_path: Path) -> None:
    make_image(tmp_path / "l")
    with opened(f"oci:{tmp_path}/l") as source:
        descriptor, data = source.manifest()
    for transport in ("oci-archive", "docker-archive"):
        path = tmp_path / f"{transport}.tar"
        path.write_bytes(b"before")
        with pytest.raises(KeyError), opened(f"{transport}:{path}", write=True) as repository:
            repository.push_manifest("x", descriptor.media_type, data)
            raise KeyError
        with opened(f"{transport}:{path}", write=True):
            pass
        assert path.read_bytes() == b"before"
    assert len(os.listdir(tmp_path)) == 3


def test_docker_archive_round_trip(tmp_path: Path) -> None:
    make_image(tmp_path / "l")
    path = tmp_path / "d.tar"
    copied(f"oci:{tmp_path}/l", f"docker-archive:{path}:some/name:v1")
    config, *layers = read_image(f"docker-archive:{path}")
    assert read_image(f"oci:{tmp_path}/l")[0] == config
    assert layers == [gzip.decompress(data) for data in read_image(f"oci:{tmp_path}/l")[1:]]
    with tarfile.open(path) as tar:
        file = tar.extractfile("manifest.json")
        assert file is not None
        (item,) = json.load(file)
    assert item["RepoTags"] == ["docker.io/some/name:v1"]
    assert read_image(f"docker-archive:{path}:some/name:v1")[0] == config
    assert read_image(f"docker-archive:{path}:docker.io/some/name:v1")[0] == config
    with pytest.raises(NotFoundError, match="other"):
        read_image(f"docker-archive:{path}:other")


def test_docker_archive_takes_one_platform(tmp_path: Path) -> None:
    make_index(tmp_path / "l")
    with opened(f"oci:{tmp_path}/l:multi") as source:
        with opened(f"docker-archive:{tmp_path}/d.tar", write=True) as destination:
            copy(source, destination, platforms=["linux/arm64"])
        descriptor, data = source.manifest()
        with (
            pytest.raises(UnsupportedError, match="one platform"),
            opened(f"docker-archive:{tmp_path}/e.tar", write=True) as destination,
        ):
            destination.push_manifest(None, descriptor.media_type, data)
    config = json.loads(read_image(f"docker-archive:{tmp_path}/d.tar")[0])
    assert config["architecture"] == "arm64"
    assert not (tmp_path / "e.tar").exists()


def test_docker_archive_refuses_native_images(tmp_path: Path) -> None:
    make_image(tmp_path / "l")
    with opened(f"oci:{tmp_path}/l", write=True) as source:
        data = source.manifest()[1].replace(m.OCI_LAYER_GZIP.encode(), m.NYDUS_BLOB.encode())
        source.push_manifest("native", m.OCI_MANIFEST, data)
    with pytest.raises(UnsupportedError, match="native"):
        copied(f"oci:{tmp_path}/l:native", f"docker-archive:{tmp_path}/d.tar")


def docker_save(path: Path, layout: str, *, tags: list[str] | None = None) -> list[bytes]:
    """An archive as docker writes it: ``old`` with folders and links, ``new`` as OCI blobs."""
    layers = [tar_layer({"a": b"1" * 2000}), tar_layer({"b": b"2"})]
    diff_ids = ["sha256:" + hashlib.sha256(data).hexdigest() for data in layers]
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()
    config_hex = hashlib.sha256(config).hexdigest()
    names = [f"{number}" * 64 + "/layer.tar" for number in range(2)]
    config_name = f"{config_hex}.json"
    if layout == "new":
        names = [f"blobs/sha256/{digest[7:]}" for digest in diff_ids]
        config_name = f"blobs/sha256/{config_hex}"
    item = {"Config": config_name, "RepoTags": tags, "Layers": names}
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        if layout == "linked":
            add("blob.tar", layers[0])
            link = tarfile.TarInfo(names[0])
            link.type, link.linkname = tarfile.SYMTYPE, "../blob.tar"
            tar.addfile(link)
        else:
            add(names[0], layers[0])
        if layout == "compressed":
            layers[1] = gzip.compress(layers[1])
        add(names[1], layers[1])
        add(config_name, config)
        add("manifest.json", json.dumps([item]).encode())
    return layers


@pytest.mark.parametrize("layout", ["old", "new", "linked", "compressed"])
def test_what_docker_save_writes(tmp_path: Path, layout: str) -> None:
    layers = docker_save(tmp_path / "d.tar", layout, tags=["x:1", "y:2"])
    for name in ("", ":x:1", ":y:2"):
        assert read_image(f"docker-archive:{tmp_path}/d.tar{name}")[1:] == layers
    with opened(f"docker-archive:{tmp_path}/d.tar") as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
        types = [m.OCI_LAYER, m.OCI_LAYER_GZIP if layout == "compressed" else m.OCI_LAYER]
        assert [layer.media_type for layer in manifest.layers] == types


def test_an_archive_without_tags_and_a_compressed_archive(tmp_path: Path) -> None:
    layers = docker_save(tmp_path / "d.tar", "old")
    (tmp_path / "d.tar.gz").write_bytes(gzip.compress((tmp_path / "d.tar").read_bytes()))
    for name in ("d.tar", "d.tar.gz"):
        assert read_image(f"docker-archive:{tmp_path}/{name}")[1:] == layers


def test_the_letters_of_keys_are_nothing_to_go(tmp_path: Path) -> None:
    """containerify writes lower-case keys; docker, podman and skopeo read them."""
    layers = docker_save(tmp_path / "d.tar", "old", tags=["app:1"])
    data = (tmp_path / "d.tar").read_bytes()
    for key in (b"Config", b"RepoTags", b"Layers"):
        assert data.count(b'"%s"' % key) == 1
        data = data.replace(b'"%s"' % key, b'"%s%s"' % (key[:1].lower(), key[1:]))
    (tmp_path / "d.tar").write_bytes(data)
    for name in ("", ":app:1"):
        assert read_image(f"docker-archive:{tmp_path}/d.tar{name}")[1:] == layers


def test_several_images_need_a_name(tmp_path: Path) -> None:
    make_image(tmp_path / "l", "v1", seed=1)
    make_image(tmp_path / "l", "v2", seed=2)
    with opened(f"oci-archive:{tmp_path}/a.tar", write=True) as destination:
        for tag in ("v1", "v2"):
            with opened(f"oci:{tmp_path}/l:{tag}") as source:
                copy(source, destination, tag=tag)
    with opened(f"oci-archive:{tmp_path}/a.tar") as repository:
        with pytest.raises(UsageError) as caught:
            repository.resolve()
        assert caught.value.hint == f"write oci-archive:{tmp_path}/a.tar:TAG; it has v1, v2"


def test_a_wrong_diff_id_writes_no_docker_archive(tmp_path: Path) -> None:
    make_image(tmp_path / "l")
    with opened(f"oci:{tmp_path}/l", write=True) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
        with repository.open_blob(manifest.config) as stream:
            config = stream.read()
        digest = json.loads(config)["rootfs"]["diff_ids"][0].encode()
        wrong = config.replace(digest, b"sha256:" + b"0" * 64)
        repository.push_blob(m.describe(m.OCI_CONFIG, wrong), io.BytesIO(wrong))
        manifest.config = m.describe(m.OCI_CONFIG, wrong)
        repository.push_manifest("wrong", m.OCI_MANIFEST, m.encode(manifest))
    with pytest.raises(IntegrityError, match="diff_id"):
        copied(f"oci:{tmp_path}/l:wrong", f"docker-archive:{tmp_path}/d.tar")
    assert os.listdir(tmp_path) == ["l"]


def test_damaged_archives(tmp_path: Path) -> None:
    make_image(tmp_path / "l")
    copied(f"oci:{tmp_path}/l", f"oci-archive:{tmp_path}/a.tar")
    copied(f"oci:{tmp_path}/l", f"docker-archive:{tmp_path}/d.tar")
    for transport, name in (("oci-archive", "a.tar"), ("docker-archive", "d.tar")):
        whole = (tmp_path / name).read_bytes()
        path = tmp_path / f"broken-{name}"
        for size in (0, 1, 511, 512, 700, 1536, len(whole) // 2, len(whole) - 1500):
            path.write_bytes(whole[:size])
            with pytest.raises(Error) as caught:
                read_image(f"{transport}:{path}")
            assert str(path) in str(caught.value)
        with pytest.raises(NotFoundError):
            opened(f"{transport}:{tmp_path}/absent.tar")
        with pytest.raises(Error):
            opened(f"{transport}:{tmp_path}/{'a.tar' if name == 'd.tar' else 'd.tar'}")


@pytest.mark.parametrize(
    "manifest",
    [
        b"[",
        b"{}",
        b'[{"Config":7}]',
        b'[{"Config":"c","Layers":["absent"]}]',
        b'[{"Config":"absent","Layers":[]}]',
        b'[{"Config":"c","Layers":[],"RepoTags":["Bad Tag"]}]',
        b'[{"Config":"loop","Layers":[]}]',
    ],
)
def test_hostile_docker_manifest(tmp_path: Path, manifest: bytes) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name, data in (("c", b"{}"), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("loop")
        link.type, link.linkname = tarfile.SYMTYPE, "loop"
        tar.addfile(link)
    with pytest.raises((FormatError, NotFoundError)):
        opened(f"docker-archive:{tmp_path}/d.tar")
