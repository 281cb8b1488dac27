"""Layers that are EROFS file systems: written, and read like any other."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lamina.archive.erofs_layer import ErofsTar
from lamina.archive.stream import LayerStream
from lamina.build.convert import convert
from lamina.build.erofs_layers import ErofsOptions, convert_layers
from lamina.build.index import IndexOptions, index_image
from lamina.build.source_image import open_source_image
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, lay_out_bootstrap
from lamina.errors import FormatError, IntegrityError, UnsupportedError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from lamina.opening.open_image import open_image
from lamina.opening.request import request_of
from lamina.registry.open_repository import open_repository
from tests.support.index_layers import lower_layer, upper_layer
from tests.support.layer_stack import stacked
from tests.support.layers import Item, add_blob, folder, oci_layout, tar_bytes, write_index
from tests.support.overlay_layers import IMAGES, layer_bytes
from tests.support.shell import Shell
from tests.support.tools import require_erofs, require_kernel, require_root, require_tool

LAYER = "application/vnd.erofs.layer.v1"
KINDS = (
    *("opaque folder", "opaque folder over a link", "opaque in the lowest layer"),
    *("whiteouts of what is not there", "whiteouts in the lowest layer", "whiteout before a file"),
    *("file over a folder and back", "metadata of hard links", "hard link folder of AUFS"),
    "metadata of the root",
)


def differences(left: Any, right: Any) -> list[str]:
    return [str(each) for each in compare(left, right)]


def converted(tmp_path: Path, layers: list[bytes], *, is_compressed: bool = False) -> str:
    """Make EROFS layers of tar archives; the reference of the image."""
    source = parse_reference(oci_layout(tmp_path / "tar", layers))
    reference = f"oci:{tmp_path}/erofs:x"
    with (
        open_repository(source) as origin,
        open_repository(parse_reference(reference), write=True) as target,
    ):
        convert_layers(origin, target, ErofsOptions(is_compressed, work_dir=str(tmp_path)))
    return reference


def documents(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the configuration of the one image in a layout."""

    def blob(digest: str) -> dict[str, Any]:
        path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
        return dict(json.loads(path.read_bytes()))

    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = blob(entry["digest"])
    return manifest, blob(manifest["config"]["digest"])


def made_by_mkfs(tmp_path: Path, tree: Path, *options: str) -> str:
    """An image with one layer that mkfs.erofs made of a folder; its reference."""
    file = tmp_path / "layer.erofs"
    words = [*require_tool("mkfs.erofs"), *options, str(file), str(tree)]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    data = file.read_bytes()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "os.features": ["erofs"],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
    }
    layout = tmp_path / "mkfs"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add_blob(
            layout, "application/vnd.oci.image.config.v1+json", json.dumps(config).encode()
        ),
        "layers": [add_blob(layout, LAYER, data)],
    }
    described = add_blob(layout, manifest["mediaType"], json.dumps(manifest).encode())
    write_index(layout, "x", described)
    return f"oci:{layout}:x"


def make_tree(tree: Path) -> None:
    """Files with and without a last part, links, attributes that are shared, one of each kind."""
    (tree / "d/e").mkdir(parents=True, mode=0o750)
    for size in (0, 1, 4095, 4096, 4097, 70_001):
        path = tree / f"d/{size}"
        path.write_bytes(os.urandom(size))
        os.setxattr(path, "user.same", b"v" * 20)
        os.utime(path, ns=(0, 1_600_000_000_123_456_789))
    os.setxattr(tree / "d/1", "trusted.own", b"\0")
    (tree / "d/link").symlink_to("../" + "x" * 300)
    os.link(tree / "d/4097", tree / "d/e/hard")
    os.mkfifo(tree / "pipe", 0o640)
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    os.chown(tree / "d/1", 70_000, 7)
    for number in range(300):
        (tree / f"d/e/with-a-long-name-{number:04}").write_bytes(b"%d" % number)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_image_of_such_layers_is_the_same_image(is_compressed: bool, tmp_path: Path) -> None:
    reference = converted(tmp_path, [lower_layer(), upper_layer()], is_compressed=is_compressed)
    with (
        open_source_image(f"oci:{tmp_path}/tar:latest") as expected,
        open_source_image(reference) as found,
    ):
        assert differences(expected, found) == []
    manifest, config = documents(tmp_path / "erofs")
    ending = "+zstd" if is_compressed else ""
    assert [layer["mediaType"] for layer in manifest["layers"]] == [LAYER + ending] * 2
    assert config["os.features"] == ["erofs"]
    if not is_compressed:
        digests = [layer["digest"] for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == digests


@pytest.mark.parametrize("name", KINDS)
def test_what_layers_hide_comes_back(name: str, tmp_path: Path) -> None:
    reference = converted(tmp_path, [layer_bytes(layer) for layer in IMAGES[name]])
    # Folders that a layer has no entry for are root's in a layer by itself.
    implied = {b"/", b"/d"}
    with (
        open_source_image(f"oci:{tmp_path}/tar:latest") as expected,
        open_source_image(reference) as found,
    ):
        left = [
            str(each)
            for each in compare(expected, found)
            if each.path not in implied or each.what == "exists"
        ]
        assert left == []


@pytest.mark.kernel
@pytest.mark.tools
def test_the_kernel_stacks_what_was_written(tmp_path: Path) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    reference = converted(tmp_path, [lower_layer(), upper_layer()])
    manifest, _ = documents(tmp_path / "erofs")
    blobs = tmp_path / "erofs/blobs/sha256"
    files = [blobs / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]
    for file in files:
        subprocess.run([*require_tool("fsck.erofs"), file], check=True, timeout=60)
    with stacked(files, tmp_path) as merged, open_source_image(reference) as image:
        found = [each for each in compare(image, FolderImage(merged)) if each.path != b"/"]
        assert found == []


def test_such_an_image_is_converted_indexed_and_opened(tmp_path: Path) -> None:
    reference = converted(tmp_path, [lower_layer(), upper_layer()])
    native = f"oci:{tmp_path}/native:x"
    convert(parse_reference(reference), parse_reference(native))
    index_image(parse_reference(reference), IndexOptions(layer_trees=True))
    with open_source_image(reference) as expected:
        for opened in (native, reference):
            with open_image(request_of(opened, store=tmp_path / "store")) as image:
                assert differences(expected, image) == []


@pytest.mark.tools
def test_what_mkfs_made_is_read(tmp_path: Path) -> None:
    require_root()
    make_tree(tmp_path / "tree")
    reference = made_by_mkfs(tmp_path, tmp_path / "tree")
    with open_source_image(reference) as image:
        assert differences(FolderImage(tmp_path / "tree"), image) == []
    native = f"oci:{tmp_path}/native:x"
    convert(parse_reference(reference), parse_reference(native))
    with open_image(request_of(native, store=tmp_path / "store")) as image:
        assert differences(FolderImage(tmp_path / "tree"), image) == []
    # The last part of a file lies elsewhere.
    with pytest.raises(UnsupportedError, match="do not lie in one place"):
        index_image(parse_reference(reference), IndexOptions())


@pytest.mark.tools
def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").write_bytes(bytes(100_000))
    reference = made_by_mkfs(tmp_path, tmp_path / "tree", "-zlz4")
    with pytest.raises(UnsupportedError, match="compressed inside"):
        open_source_image(reference).close()


@pytest.mark.tools
def test_a_name_that_would_hide_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/.wh.etc").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="a mark in other layers"):
        open_source_image(made_by_mkfs(tmp_path, tmp_path / "tree")).close()


def test_a_small_layer_of_large_holes_is_a_bomb(tmp_path: Path) -> None:
    size = 1 << 43
    count = size // (16 << 20)
    file = Node(stat.S_IFREG | 0o644, size=size, chunks=b"\xff" * 8 * count)
    root = Node(stat.S_IFDIR | 0o755, children={b"f": file})
    image = lay_out_bootstrap(root, [], 0, BootstrapOptions(16 << 20))
    layer = LayerStream(io.BytesIO(bytes(image)))
    with (
        closing(ErofsTar(layer, str(tmp_path), 1 << 44)) as archive,
        pytest.raises(FormatError, match="more than the allowed"),
    ):
        while archive.read():
            pass


def test_many_places_of_few_bytes_are_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each chunk is the first block again.
    chunks = b"\0" * 8 * 300
    file = Node(stat.S_IFREG | 0o644, size=300 * 4096, chunks=chunks)
    root = Node(stat.S_IFDIR | 0o755, children={b"f": file})
    image = bytes(lay_out_bootstrap(root, [], 0, BootstrapOptions(4096)))
    monkeypatch.setattr("lamina.archive.erofs_layer.MOST_PLACES", 299)
    for is_placed in (False, True):
        layer = LayerStream(io.BytesIO(image))
        with closing(ErofsTar(layer, str(tmp_path), 1 << 30, is_placed=is_placed)) as archive:
            if is_placed:
                with pytest.raises(UnsupportedError, match="more than 299 places"):
                    while archive.read():
                        pass
                continue
            while archive.read():
                pass


def test_a_whiteout_that_is_an_attribute_is_refused(tmp_path: Path) -> None:
    xattrs = {b"trusted.overlay.whiteout": b""}
    file = Node(stat.S_IFREG | 0o644, xattrs=xattrs)
    root = Node(stat.S_IFDIR | 0o755, children={b"f": file})
    image = bytes(lay_out_bootstrap(root, [], 0, BootstrapOptions(4096)))
    layer = LayerStream(io.BytesIO(image))
    with (
        closing(ErofsTar(layer, str(tmp_path), 1 << 30)) as archive,
        pytest.raises(UnsupportedError, match="other layers"),
    ):
        while archive.read():
            pass


@pytest.mark.tools
@pytest.mark.kernel
def test_times_of_small_inodes_are_those_of_the_kernel(tmp_path: Path) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").write_bytes(b"x")
    reference = made_by_mkfs(tmp_path, tmp_path / "tree", "--ignore-mtime")
    with stacked([tmp_path / "layer.erofs"], tmp_path) as mounted:
        expected = (mounted / "f").stat().st_mtime_ns
    with open_source_image(reference) as image:
        found = image.stat("/f")
        assert found.mtime * 1_000_000_000 + found.mtime_ns == expected


def test_a_layer_that_is_not_the_promised_one(tmp_path: Path) -> None:
    reference = converted(tmp_path, [tar_bytes([folder("d"), Item("d/f", b"x")])])
    manifest, _ = documents(tmp_path / "erofs")
    path = tmp_path / "erofs/blobs/sha256" / manifest["layers"][0]["digest"].partition(":")[2]
    data = bytearray(path.read_bytes())
    data[-4096] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        open_source_image(reference).close()


def test_native_images_and_options_of_theirs_are_refused(shell: Shell) -> None:
    oci_layout(shell.folder / "tar", [tar_bytes([Item("f", b"x")])])
    shell("convert", "oci:tar:latest", "oci:native:x")
    done = shell("convert", "--layers", "erofs", "oci:native:x", "oci:out:x", code=2)
    assert "not an ordinary image" in done.stderr
    done = shell(
        "convert", "--layers", "erofs", "--pack", "64K", "oci:tar:latest", "oci:o:x", code=2
    )
    assert "--pack is of native images" in done.stderr
    said = json.loads(
        shell("convert", "--json", "--layers", "erofs", "oci:tar:latest", "oci:o:x").stdout
    )
    (layer,) = said["images"][0]["layers"]
    assert layer["diff_id"] == layer["blob_digest"]
