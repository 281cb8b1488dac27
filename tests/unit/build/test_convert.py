"""Conversions of small images: the tree that unpacking would give, and the same bytes each time."""

from __future__ import annotations

import json
import os
import random
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support import layers
from tests.support.layers import Item, folder, hard_link, oci_layout, opaque, symlink, whiteout
from tests.support.opening import open_image

from lamina.blob.framing import read_bootstrap, read_sections
from lamina.build.convert import convert
from lamina.build.options import ConvertOptions, ConvertProgress, ConvertReport
from lamina.build.source_image import open_source_image
from lamina.build.unpack import unpack_to_folder, unpack_to_image
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.check import check_bootstrap
from lamina.erofs.reader import Bootstrap
from lamina.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
    UsageError,
)
from lamina.image.compare import compare
from lamina.image.errors import NoKeyError
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutBlobWriter

noise = random.Random(3)
BIG = noise.randbytes(300_000) + b"compressible " * 30_000
CAPABILITY = "\1\0\0\2\0\x20" + "\0" * 14
SHARED = noise.randbytes(70_000)
LOWER = [
    folder("./", 0o755, mtime=1_600_000_000),
    folder("bin", 0o755),
    Item("bin/big", BIG, mode=0o4755, uid=1, gid=2),
    *(Item(f"bin/small-{i}", b"%d " % i * (i * 37 % 900), uid=i) for i in range(60)),
    Item("bin/shared", SHARED),
    Item("bin/tail", BIG[:140_000] + b"another end"),
    Item("empty"),
    hard_link("bin/hard", "bin/big"),
    symlink("link", "bin/big"),
    symlink("long", "x" * 4000),
    Item("dev-null", kind=layers.CHARACTER, device=(1, 3), mode=0o666),
    Item("dev-disk", kind=layers.BLOCK, device=(259, 300_000), mode=0o660, gid=6),
    Item("fifo", kind=layers.FIFO),
    Item("attributes", b"x", xattrs={"user.a": "1", "security.capability": CAPABILITY}),
    Item("ancient", b"old", mtime=-5),
    folder("sub"),
    Item("sub/gone", b"will be hidden"),
    folder("swept"),
    Item("swept/away", b"hidden by the last layer"),
    folder("opaque"),
    Item("opaque/lower", b"hidden too"),
    Item("ümlaut/" + "n" * 250, b"long name"),
]
UPPER = [
    Item("bin/shared-again", SHARED),
    Item("bin/small-7", b"replaced"),
    whiteout("sub/gone"),
    opaque("opaque"),
    Item("opaque/upper", BIG[:5000]),
    hard_link("sub/link-to-lower", "bin/tail"),
]
MARKERS = [whiteout("nothing"), opaque("swept")]
IMAGE: Sequence[Sequence[Item]] = (LOWER, UPPER, [], MARKERS)


def run(source: str, destination: Path | str, **options: Any) -> ConvertReport:
    target = destination if isinstance(destination, str) else f"oci:{destination}:native"
    options.setdefault("jobs", 2)
    return convert(parse_reference(source), parse_reference(target), ConvertOptions(**options))


def differences(left: Any, right: Any) -> list[str]:
    return [str(difference) for difference in compare(left, right)]


def manifest_of(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_bytes())
    return read_json(layout, index["manifests"][-1]["digest"])


def read_json(layout: Path, digest: str) -> dict[str, Any]:
    return json.loads(blob_path(layout, digest).read_bytes())


def blob_path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / Path(*digest.split(":"))


def own_bootstrap(path: Path) -> Bootstrap:
    """The bootstrap inside a layer's blob."""
    data = path.read_bytes()
    found = read_bootstrap(lambda offset, size: data[offset : offset + size], len(data))
    assert found is not None
    check_bootstrap(found)
    return Bootstrap(found)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"pack_size": 0},
    {"chunk_size": 4096, "pack_size": 4096, "compressor": Compressor.LZ4_BLOCK},
    {"chunk_size": 1 << 20, "pack_size": 1 << 16, "digester": Digester.SHA256, "level": 9},
    {"chunk_size": 1 << 24, "pack_size": 0, "compressor": Compressor.NONE},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_tree_is_that_of_the_source(tmp_path: Path, options: dict[str, Any]) -> None:
    source = oci_layout(tmp_path / "oci", IMAGE)
    report = run(source, tmp_path / "native", **options)
    with open_source_image(source) as wanted, open_image(f"oci:{tmp_path}/native") as found:
        assert differences(wanted, found) == []
        assert found.stat("/sub/link-to-lower").ino == found.stat("/bin/tail").ino
        check_bootstrap(found.bootstrap_path.read_bytes())
    [image] = report.images
    assert [layer.entries for layer in image.layers] == [len(items) for items in IMAGE]
    upper = image.layers[1]
    assert upper.plain_bytes == len(SHARED) + len(b"replaced") + 5000
    # The first 4096 bytes of the file of 5000 are a chunk of a lower file, if chunks are so small.
    shared = 4096 if options.get("chunk_size") == 4096 else 0
    assert upper.new_bytes == len(b"replaced") + 5000 - shared


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_every_compression_gives_the_same_layers(tmp_path: Path, compression: str) -> None:
    report = run(oci_layout(tmp_path / "oci", IMAGE, compression), tmp_path / "native")
    plain = run(oci_layout(tmp_path / "plain", IMAGE, "none"), tmp_path / "native2")
    blobs = [[layer.blob_digest for layer in r.images[0].layers] for r in (report, plain)]
    assert blobs[0] == blobs[1]


def test_digests_do_not_depend_on_jobs_or_destination(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", IMAGE)
    reports = [run(source, tmp_path / f"native-{jobs}", jobs=jobs) for jobs in (1, 2, 3)]
    reports.append(run(source, f"oci-archive:{tmp_path}/native.tar:t"))
    assert len({report.digest for report in reports}) == 1


def test_manifest_and_configuration(tmp_path: Path) -> None:
    layout, native = tmp_path / "oci", tmp_path / "native"
    source = oci_layout(layout, IMAGE)
    report = run(source, native)
    source_manifest, manifest = manifest_of(layout), manifest_of(native)
    index = json.loads((native / "index.json").read_bytes())
    assert index["manifests"][-1]["digest"] == report.digest
    notes = manifest["annotations"]
    source_digest = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    assert notes["containerd.io/snapshot/nydus-source-digest"] == source_digest
    *blobs, last = manifest["layers"]
    assert len(blobs) == len(source_manifest["layers"])
    for blob in blobs:
        assert blob["mediaType"] == "application/vnd.oci.image.layer.nydus.blob.v1"
        assert blob["annotations"] == {"containerd.io/snapshot/nydus-blob": "true"}
    assert last["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    root = last["annotations"].pop("dev.lamina.bootstrap.root")
    assert re.fullmatch(r"[0-9a-f]{64} \d+", root)
    assert last["annotations"] == {
        "containerd.io/snapshot/nydus-bootstrap": "true",
        "containerd.io/snapshot/nydus-fs-version": "6",
    }
    config = read_json(native, manifest["config"]["digest"])
    source_config = read_json(layout, source_manifest["config"]["digest"])
    assert config["config"] == source_config["config"]
    assert len(config["history"]) == len(source_config["history"]) + 1
    assert config["rootfs"]["diff_ids"][:-1] == [blob["digest"] for blob in blobs]
    with tarfile.open(blob_path(native, last["digest"])) as tar:
        assert tar.getnames()[:2] == ["image", "image/image.boot"]
        hexes = [blob["digest"].partition(":")[2] for blob in blobs[:2]]
        assert tar.getnames()[2:] == [f"image/{name}.blob.meta" for name in hexes]


def test_each_blob_describes_its_own_layer(tmp_path: Path) -> None:
    native = tmp_path / "native"
    run(oci_layout(tmp_path / "oci", IMAGE), native)
    paths = [blob_path(native, layer["digest"]) for layer in manifest_of(native)["layers"][:-1]]
    first, second, empty, markers = map(own_bootstrap, paths)
    assert [blob.blob_id for blob in first.blobs] == ["x" * 64]
    # The second layer borrows chunks of the first.
    assert [blob.blob_id for blob in second.blobs] == ["x" * 64, paths[0].name]
    assert list(empty.blobs) == list(markers.blobs) == []
    sections = []
    for path in paths:
        data = path.read_bytes()
        sections.append(set(read_sections(lambda o, s, d=data: d[o : o + s], len(data))))
    assert sections[0] >= {"image.blob", "blob.meta", "image.boot", "rafs.blob.toc"}
    assert sections[2] == {"image.boot", "rafs.blob.toc"}
    names = {entry.name for entry in second.readdir(second.inode(second.root_nid))}
    assert names == {b"bin", b"opaque", b"sub"}
    nid = markers.lookup(markers.inode(markers.root_nid), b"swept")
    assert nid is not None
    names = {entry.name for entry in markers.readdir(markers.inode(nid))}
    assert names == {b".wh..wh..opq"}


def test_blobs_that_nothing_needs_are_not_in_the_bootstrap(tmp_path: Path) -> None:
    hidden = [[Item("a", b"hidden" * 99)], [Item("a", b"seen" * 99)], [Item("b", b"more" * 99)]]
    run(oci_layout(tmp_path / "oci", hidden), tmp_path / "native")
    layer_ids = [layer["digest"][7:] for layer in manifest_of(tmp_path / "native")["layers"][:-1]]
    with open_image(f"oci:{tmp_path}/native") as image:
        assert [blob.blob_id for blob in image.bootstrap.blobs] == layer_ids[1:]
        assert image.open("/a").read() == b"seen" * 99
        assert image.open("/b").read() == b"more" * 99


@pytest.mark.parametrize("content", [[], [[]], [[folder("d")]], [[Item("empty")], []], [b""]])
def test_images_without_data(tmp_path: Path, content: list[Any]) -> None:
    source = oci_layout(tmp_path / "oci", content)
    run(source, tmp_path / "native")
    with open_source_image(source) as wanted, open_image(f"oci:{tmp_path}/native") as found:
        assert differences(wanted, found) == []


def test_unpacking_gives_the_tree_back(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", IMAGE)
    run(source, tmp_path / "native")
    if os.geteuid():
        pytest.skip("not root: owners and devices cannot be made")
    with open_image(f"oci:{tmp_path}/native") as image, open_source_image(source) as wanted:
        report = unpack_to_folder(image, tmp_path / "tree")
        assert report.notes == []
        assert differences(wanted, FolderImage(tmp_path / "tree")) == []
        _, again = unpack_to_image(image, parse_reference(f"oci:{tmp_path}/again:t"))
        assert again.entries == report.entries
        with open_source_image(f"oci:{tmp_path}/again:t") as found:
            assert differences(wanted, found) == []
        first = json.loads((tmp_path / "again" / "index.json").read_bytes())
        unpack_to_image(image, parse_reference(f"oci:{tmp_path}/twice:t"))
        assert json.loads((tmp_path / "twice" / "index.json").read_bytes()) == first


def multi_platform(layout: Path) -> str:
    manifests = []
    for architecture in ("amd64", "arm64"):
        layer = layers.tar_bytes([Item("arch", architecture.encode())])
        entry = layers.add_image(layout, [layer], architecture=architecture)
        manifests.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    unknown = {"os": "unknown", "architecture": "unknown"}
    manifests.append({**layers.add_image(layout, []), "platform": unknown})
    media_type = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    layers.write_index(
        layout, "all", layers.add_blob(layout, media_type, json.dumps(index).encode())
    )
    return f"oci:{layout}:all"


def test_an_index_becomes_an_index(tmp_path: Path) -> None:
    report = run(multi_platform(tmp_path / "oci"), tmp_path / "native")
    assert [image.platform for image in report.images] == ["linux/amd64", "linux/arm64"]
    index = read_json(tmp_path / "native", report.digest)
    for entry, image in zip(index["manifests"], report.images, strict=True):
        assert entry["artifactType"] == "application/vnd.nydus.image.manifest.v1+json"
        assert entry["digest"] == image.manifest_digest
    for platform in ("linux/amd64", "linux/arm64"):
        with open_image(f"oci:{tmp_path}/native:native", platform=platform) as image:
            assert image.open("/arch").read() == platform[6:].encode()


def test_one_platform_of_an_index(tmp_path: Path) -> None:
    source = multi_platform(tmp_path / "oci")
    report = run(source, tmp_path / "native", platforms=["linux/arm64"])
    assert report.media_type == "application/vnd.oci.image.manifest.v1+json"
    with pytest.raises(NotFoundError, match="wanted platform"):
        run(source, tmp_path / "native", platforms=["linux/riscv64"])


def test_platform_of_a_single_manifest(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", [[Item("a")]])
    with pytest.raises(NotFoundError, match="linux/amd64"):
        run(source, tmp_path / "native", platforms=["linux/arm64"])


def test_native_sources_are_refused(tmp_path: Path) -> None:
    run(oci_layout(tmp_path / "oci", [[Item("a")]]), tmp_path / "native")
    with pytest.raises(UsageError, match="native image already"):
        run(f"oci:{tmp_path}/native:native", tmp_path / "again")
    with pytest.raises(UsageError, match="native image"):
        open_source_image(f"oci:{tmp_path}/native:native")


def test_prefetch_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "lamina")
    source = oci_layout(tmp_path / "oci", IMAGE)
    run(source, tmp_path / "native", prefetch=[b"/bin/big", b"/no/such\xff"])
    missing = "the image has no /no/such\\xff to prefetch; links are not followed"
    assert [record.getMessage() for record in caplog.records] == [missing]
    with open_image(f"oci:{tmp_path}/native") as image:
        assert list(image.bootstrap.prefetch_nids) == [image.stat("/bin/big").ino]


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 5000},
        {"chunk_size": 2048, "pack_size": 0},
        {"chunk_size": 1 << 25},
        {"pack_size": 1 << 20},
        {"jobs": -1},
        {"jobs": 257},
        {"compressor": Compressor.GZIP},
        {"prefetch": [b"relative"]},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(f"oci:{tmp_path}/x", tmp_path / "native", **options)


def nothing_named(layout: Path) -> bool:
    index = layout / "index.json"
    return not index.exists() or json.loads(index.read_bytes())["manifests"] == []


def test_damaged_layers_leave_nothing_named(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", IMAGE)
    digest = manifest_of(tmp_path / "oci")["layers"][1]["digest"]
    path = blob_path(tmp_path / "oci", digest)
    data = bytearray(path.read_bytes())
    data[4] ^= 1  # the time in the gzip header: inflates all the same
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=digest):
        run(source, tmp_path / "native")
    assert nothing_named(tmp_path / "native")


def test_hostile_layers_are_one_clear_error(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", [[Item("a")], [Item("../b")]])
    with pytest.raises(FormatError, match="leads upwards"):
        run(source, tmp_path / "native")
    assert nothing_named(tmp_path / "native")


def test_bombs_are_stopped(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", [[Item("bomb", bytes(20_000_000))]])
    with pytest.raises(FormatError, match="more than the allowed 1000000 bytes"):
        run(source, tmp_path / "native", max_layer_bytes=1_000_000)


def test_layers_that_are_no_archives(tmp_path: Path) -> None:
    layout = tmp_path / "oci"
    layers.write_index(layout, "t", layers.add_image(layout, [b"x"]))
    manifest = manifest_of(layout)
    manifest["layers"][0]["mediaType"] += "+encrypted"
    media_type = manifest["mediaType"]
    data = json.dumps(manifest).encode()
    layers.write_index(layout, "t", layers.add_blob(layout, media_type, data))
    with pytest.raises(NoKeyError, match="encrypted"):
        run(f"oci:{layout}:t", tmp_path / "native")


def test_a_full_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends first, all that waits for it ends as well."""
    items = [Item(f"{number}", os.urandom(1 << 20)) for number in range(40)]
    source = oci_layout(tmp_path / "oci", [items, items[:3], [Item("a", b"x")]])

    def fail(_self: LayoutBlobWriter, _data: bytes) -> None:
        raise StoreError("no space")

    monkeypatch.setattr(LayoutBlobWriter, "write", fail)
    with pytest.raises(StoreError, match="no space"):
        run(source, tmp_path / "native")
    assert nothing_named(tmp_path / "native")
    assert not [path for path in (tmp_path / "native").rglob("*") if path.name.startswith(".")]


def test_a_second_conversion_pushes_nothing_new(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", IMAGE)
    run(source, tmp_path / "native")
    blobs = tmp_path / "native" / "blobs" / "sha256"
    before = {path.name: path.stat().st_ino for path in blobs.iterdir()}
    run(source, tmp_path / "native")
    assert {path.name: path.stat().st_ino for path in blobs.iterdir()} == before


def test_progress_is_told(tmp_path: Path) -> None:
    source = oci_layout(tmp_path / "oci", IMAGE)
    seen: list[ConvertProgress] = []
    run(source, tmp_path / "native", progress=seen.append)
    last = seen[-1]
    assert last.read_bytes == last.total_read_bytes > 0
    assert last.packed_bytes == last.total_packed_bytes > 0
    assert last.pushed_bytes == last.total_pushed_bytes > 0
