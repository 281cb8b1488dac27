"""Single layers as disks: stacked by the kernel they show what the image shows."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from lamina.block.disk import DiskView
from lamina.block.export import export_disk
from lamina.build import native_layers
from lamina.build.convert import convert
from lamina.build.index import IndexOptions, index_image
from lamina.build.native_layers import native_layer_trees
from lamina.content.lazy_image import LazyImage
from lamina.errors import FormatError, IntegrityError, NotFoundError, UnsupportedError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.opening.garbage_collection import metadata_of
from lamina.opening.layer_images import layer_images
from lamina.opening.open_image import begin
from lamina.opening.request import request_of
from lamina.registry.open_repository import open_repository
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE
from lamina.store.records import LAYERS as LAYERS_RECORD
from tests.support.layer_stack import indexed, stacked
from tests.support.layers import Item, folder, oci_layout, tar_bytes, whiteout
from tests.support.overlay_layers import IMAGES, layer_bytes
from tests.support.tools import require_erofs, require_kernel, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

IMPLIED = {
    "opaque folder": {b"/d"},
    "opaque folder with one that no entry describes": {b"/d", b"/d/s"},
    "opaque in the lowest layer": {b"/d"},
    "below a file": {b"/d"},
    "folder that no entry describes": {b"/d"},
    "whiteout below a link of the same layer": {b"/t"},
    "below a link of the same layer": {b"/t"},
    "whiteouts of what is not there": {b"/d"},
}
"""Folders that a layer has no entry for: in a layer by itself they are root's, as containerd makes
them where it unpacks layers at one time.
"""
OVERLAY_HIDES = {"device 0:0": {b"/d", b"/f"}}


KINDS = (
    *("opaque folder", "opaque folder over a link", "whiteout below a link of the same layer"),
    *("whiteouts of what is not there", "whiteouts in the lowest layer", "device 0:0"),
    *("file over a folder and back", "metadata of hard links", "hard link folder of AUFS"),
)
"""Those that layers by themselves can get wrong; with LAMINA_WHOLE_IMAGES set all are tried."""


HIDDEN = ("opaque folder", "whiteouts in the lowest layer", "device 0:0")
"""Images that show nothing of one of their layers."""


@pytest.mark.parametrize("name", IMAGES if "LAMINA_WHOLE_IMAGES" in os.environ else KINDS)
@pytest.mark.parametrize("kind", ["indexed", "native"])
def test_the_layers_stacked_are_the_image(kind: str, name: str, tmp_path: Path) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    layers = [layer_bytes(layer) for layer in IMAGES[name]]
    if kind == "native":
        if name in (*HIDDEN, "file over a folder and back"):
            pytest.skip("a native image keeps no layer of which it shows nothing")
        reference = f"oci:{tmp_path}/native:x"
        convert(
            parse_reference(oci_layout(tmp_path / "layout", layers)), parse_reference(reference)
        )
    else:
        reference = indexed(tmp_path / "layout", layers)
    with (
        begin(request_of(reference, store=tmp_path / "store")) as opening,
        opening.open(opening.version()) as image,
    ):
        disks = []
        for number, layer in enumerate(layer_images(opening.place, image, native_layer_trees)):
            disks.append(tmp_path / f"{number}.erofs")
            export_disk(DiskView(layer.image), disks[-1])
            subprocess.run([*require_tool("fsck.erofs"), disks[-1]], check=True, timeout=60)
        with stacked(disks, tmp_path) as merged:
            implied = IMPLIED.get(name, set()) | {b"/"}
            found = [
                str(one)
                for one in compare(image, FolderImage(merged))
                if one.path not in OVERLAY_HIDES.get(name, set())
                and (one.path not in implied or one.what == "exists")
            ]
            assert found == []


def test_a_layer_that_the_image_shows_nothing_of_is_refused(tmp_path: Path) -> None:
    layers = [layer_bytes(layer) for layer in IMAGES["opaque folder"]]
    source = oci_layout(tmp_path / "layout", layers)
    reference = f"oci:{tmp_path}/native:x"
    convert(parse_reference(source), parse_reference(reference))
    with (
        begin(request_of(reference, store=tmp_path / "store")) as opening,
        opening.open(opening.version()) as image,
        pytest.raises(UnsupportedError, match="shows nothing of the layer"),
    ):
        layer_images(opening.place, image, native_layer_trees)


def test_a_layer_of_a_native_image_is_proven(tmp_path: Path) -> None:
    """Its names are in the blob, of which only a part is read."""
    source = oci_layout(tmp_path / "layout", [tar_bytes([folder("d"), Item("d/name", b"x" * 99)])])
    convert(parse_reference(source), parse_reference(f"oci:{tmp_path}/native:x"))
    for path in (tmp_path / "native/blobs/sha256").iterdir():
        data = path.read_bytes()
        if data.endswith(bytes(512)) or b"image.boot" not in data:
            continue
        path.write_bytes(data.replace(b"image.boot", b"image.bood"))
    with (
        begin(request_of(f"oci:{tmp_path}/native:x", store=tmp_path / "store")) as opening,
        opening.open(opening.version()) as image,
        pytest.raises((IntegrityError, FormatError)),
    ):
        layer_images(opening.place, image, native_layer_trees)


def test_a_layer_of_too_many_inodes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = oci_layout(tmp_path / "layout", [tar_bytes([folder("d"), Item("d/name", b"x" * 99)])])
    convert(parse_reference(source), parse_reference(f"oci:{tmp_path}/native:x"))
    monkeypatch.setattr(native_layers, "MAX_ENTRIES", 2)
    with (
        begin(request_of(f"oci:{tmp_path}/native:x", store=tmp_path / "store")) as opening,
        opening.open(opening.version()) as image,
        pytest.raises(UnsupportedError, match="3 inodes"),
    ):
        layer_images(opening.place, image, native_layer_trees)


LIES: dict[str, Callable[[list[str]], list[str]]] = {
    "none": lambda own: own[:0],
    "the metadata is another's": lambda own: [*own[:-1], f"sha256:{'a' * 64}"],
    "a layer is another's": lambda own: [f"sha256:{'a' * 64}", *own[1:]],
}


@pytest.mark.parametrize("is_told_before", [True, False])
@pytest.mark.parametrize("lie", LIES)
def test_a_native_image_that_names_layers_of_another_is_refused(
    tmp_path: Path, lie: str, is_told_before: bool
) -> None:
    """Who mounts layers by their names alone would have this one's in the place of that one's."""
    source = oci_layout(tmp_path / "layout", [tar_bytes([folder("d"), Item("d/name", b"x" * 99)])])
    place = parse_reference(f"oci:{tmp_path}/native:x")
    convert(parse_reference(source), place)
    with open_repository(place, write=True) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
        with repository.open_blob(manifest.config) as stream:
            config = json.loads(stream.read())
        config["rootfs"]["diff_ids"] = LIES[lie](config["rootfs"]["diff_ids"])
        data = m.encode(config)
        manifest.config = m.describe(manifest.config.media_type, data)
        repository.push_blob(manifest.config, io.BytesIO(data))
        repository.push_manifest("x", m.OCI_MANIFEST, m.encode(manifest))
    with (
        begin(request_of(f"oci:{tmp_path}/native:x", store=tmp_path / "store")) as opening,
        opening.open(opening.version()) as image,
    ):
        ((digest, record),) = opening.place.store.records.each(IMAGE)
        if not is_told_before:
            # As an earlier version has it.
            opening.place.store.records.write(IMAGE, digest, replace(record, diff_id=""))
        with pytest.raises(IntegrityError, match="says that its layer"):
            layer_images(opening.place, image, native_layer_trees)


def test_a_layer_whose_table_of_contents_the_image_does_not_name_is_read_whole(
    tmp_path: Path,
) -> None:
    """Some tools leave the digest of the table of contents zero, which then proves nothing."""
    source = oci_layout(tmp_path / "layout", [tar_bytes([folder("d"), Item("d/name", b"x" * 99)])])
    convert(parse_reference(source), parse_reference(f"oci:{tmp_path}/native:x"))
    with (
        begin(request_of(f"oci:{tmp_path}/native:x", store=tmp_path / "store")) as opening,
        opening.open(opening.version()) as image,
    ):
        blobs = tuple(blob._replace(toc_digest=bytes(32)) for blob in image.bootstrap.blobs)
        path = tmp_path / "native/blobs/sha256" / blobs[0].blob_id
        claims = SimpleNamespace(
            manifest=image.manifest,
            config=image.config,
            bootstrap=SimpleNamespace(blobs=blobs, chunk_size=image.bootstrap.chunk_size),
            read_stored=lambda _, offset, size: path.read_bytes()[offset : offset + size],
        )
        assert len(native_layer_trees(cast("LazyImage", claims))) == 2
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match="has other bytes"):
            native_layer_trees(cast("LazyImage", claims))


LAYERS = [
    [folder("d"), Item("d/gone", b"gone"), Item("d/kept", b"kept" * 9000)],
    [whiteout("d/gone"), Item("new", b"new")],
]


def export(capfd: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    """Run ``lamina export`` and return what it says."""
    from lamina.cli.dispatch import run_command

    capfd.readouterr()
    assert run_command(["export", *map(str, words)]) == code
    out, err = capfd.readouterr()
    return out + err


def test_a_layer_is_written_by_its_number_or_its_diff_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))
    tars = [tar_bytes(layer) for layer in LAYERS]
    reference = indexed(tmp_path / "layout", tars)
    export(capfd, "--layer", "2", reference, tmp_path / "by_number")
    diff_id = f"sha256:{hashlib.sha256(tars[1]).hexdigest()}"
    export(capfd, "--layer", diff_id, reference, tmp_path / "by_name")
    assert (tmp_path / "by_number").read_bytes() == (tmp_path / "by_name").read_bytes()
    (dump,) = require_tool("dump.erofs")
    command = [dump, "--path=/d/gone", tmp_path / "by_name"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Size: 0" in shown
    said = export(capfd, "--layer", "3", reference, tmp_path / "none", code=2)
    assert "the image has 2 layers, and none of them is 3" in said


def test_what_is_needed_for_layers_is_said_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))
    reference = oci_layout(tmp_path / "layout", [tar_bytes(layer) for layer in LAYERS])
    index_image(parse_reference(reference), IndexOptions())
    said = export(capfd, "--layer", "1", reference, tmp_path / "disk", code=NotFoundError.exit_code)
    assert f"lamina index --layers {reference} makes them" in said
    index_image(parse_reference(reference), IndexOptions(layer_trees=True))
    export(capfd, "--layer", "1", reference, tmp_path / "disk")
    store = NodeStore(tmp_path / "store")
    ((digest, record),) = store.records.each(LAYERS_RECORD)
    files = store.records.read(IMAGE, digest)
    assert files is not None
    assert len(record.trees) == 2
    assert set(metadata_of(store, digest, files)) > set(record.trees.values())
