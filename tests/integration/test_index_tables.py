"""Index layers of eStargz and zstd:chunked by their tables of contents, without reading them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lamina.build.convert import convert
from lamina.build.index import IndexReport
from lamina.build.source_image import open_source_image
from lamina.codec.digest import Digester
from lamina.errors import IntegrityError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from lamina.serve.mount import mount_image
from tests.integration.test_cli_chain import Shell
from tests.integration.test_index import index, ordinary_image
from tests.integration.test_mount_devices import DEVICES, require_device
from tests.support import tools
from tests.support.index_layers import content, upper_layer
from tests.support.layers import Item, folder, hard_link, tar_bytes
from tests.support.lazy_layers import (
    ESTARGZ_DIGEST,
    STARGZ_CHECKSUM,
    LazyLayer,
    estargz,
    stargz_chunked,
    zstd_chunked,
)
from tests.support.nydusd import nydusd_mount
from tests.support.opening import open_image

REF_NAME = "org.opencontainers.image.ref.name"
KINDS = {"estargz": estargz, "zstd:chunked": zstd_chunked, "stargz zstd": stargz_chunked}
SECOND = 1_700_000_000
SMALL = [folder("d"), Item("d/a", content(5000, 1)), Item("d/b", content(300_000, 2))]


def blob_files(layout: Path) -> list[Path]:
    """The layers of the image with the tag latest."""
    blobs = layout / "blobs" / "sha256"
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    names = [entry.get("annotations", {}).get(REF_NAME) for entry in entries]
    manifest = json.loads((blobs / entries[names.index("latest")]["digest"][7:]).read_bytes())
    return [blobs / layer["digest"][7:] for layer in manifest["layers"]]


def differences(reference: str, store: Path) -> list[str]:
    with open_image(reference, store=store) as image, open_source_image(reference) as wanted:
        return [str(one) for one in compare(wanted, image)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_are_not_read(kind: str, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    reference = ordinary_image(layout, KINDS[kind])
    kept = {path: path.read_bytes() for path in blob_files(layout)}
    for path, data in kept.items():
        # The begin of the first file's data stays, which tells what kind of members they are.
        path.write_bytes(data[:2000] + bytes(len(data) // 2 - 2000) + data[len(data) // 2 :])
    report = index(reference)
    assert (report.by_table, report.table_problem) == (True, "")
    for path, data in kept.items():
        path.write_bytes(data)
    assert differences(reference, tmp_path / "store") == []


@pytest.mark.kernel
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mounted_tree_is_that_of_the_layers(kind: str, device: str, tmp_path: Path) -> None:
    require_device(device)
    reference = ordinary_image(tmp_path / "layout", KINDS[kind])
    assert index(reference).by_table
    (tmp_path / "mnt").mkdir()
    with (
        open_image(reference, store=tmp_path / "store") as image,
        open_source_image(reference) as wanted,
        mount_image(image, tmp_path / "mnt", device),
    ):
        assert [str(one) for one in compare(wanted, FolderImage(tmp_path / "mnt"))] == []


@pytest.mark.tools
@pytest.mark.usefixtures("as_root")
def test_nydusd_serves_an_index_by_the_table(peer: Callable[[str], Path], tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", estargz)
    assert index(reference).by_table
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    with (
        open_image(reference, store=tmp_path / "store") as image,
        nydusd_mount(peer("nydusd"), image.bootstrap_path, blobs, tmp_path / "work") as mountpoint,
        open_source_image(reference) as wanted,
    ):
        found = [str(one) for one in compare(wanted, FolderImage(mountpoint))]
        assert [one for one in found if ": mtime: 0 / " not in one] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_fetches_one_part_and_verifies_it(kind: str, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    reference = ordinary_image(layout, KINDS[kind], [tar_bytes(SMALL)])
    index(reference)
    with open_image(reference, store=tmp_path / "store") as image:
        assert image.bootstrap.digester == Digester.SHA256
        assert image.open("/d/a").read() == content(5000, 1)
        assert image.statistics.requests == 1
        assert 0 < image.statistics.fetched_bytes < 6000
        (path,) = blob_files(layout)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=path.name):
            image.open("/d/b").read()


@pytest.mark.parametrize("kind", KINDS)
def test_times_are_those_of_the_table_however_the_layer_is_read(kind: str, tmp_path: Path) -> None:
    """Tables of stargz have whole seconds, halves rounded up, and none in the first of 1970."""
    parts = {"down": 0.25, "half": 0.5, "up": 0.75, "whole": 0.0}
    items = [Item(name, b"x", mtime=SECOND + part) for name, part in parts.items()]
    items += [hard_link("hard", "up"), folder("d", mtime=SECOND + 0.5), Item("early", mtime=0.75)]
    items[len(parts)].mtime = SECOND + 0.75
    reference = ordinary_image(tmp_path / "layout", KINDS[kind], [tar_bytes(items)])
    native = f"oci:{tmp_path / 'native'}:x"
    convert(parse_reference(reference), parse_reference(native))
    is_exact = kind == "zstd:chunked"
    with open_source_image(reference) as wanted:
        stats = [wanted.stat(name.encode()) for name in (*parts, "hard", "d", "early")]
        found = [stat.mtime + stat.mtime_ns / 1e9 - SECOND for stat in stats]
        exact = [*parts.values(), 0.75, 0.5, 0.75 - SECOND]
        assert found == (exact if is_exact else [0, 1, 1, 0, 1, 1, -SECOND])
        for by_table in (True, False):
            assert index(reference, by_table=by_table).by_table == by_table
            assert differences(reference, tmp_path / f"store-{by_table}") == []
            Shell(tmp_path)("check", "--data", f"oci:{tmp_path / 'layout'}:index")
        with open_image(native, store=tmp_path / "native-store") as image:
            assert [str(one) for one in compare(wanted, image)] == []


def test_a_table_of_stargz_is_found_by_its_digest_alone(tmp_path: Path) -> None:
    def pack(data: bytes) -> LazyLayer:
        layer = stargz_chunked(data)
        return LazyLayer(layer.data, {ESTARGZ_DIGEST: layer.annotations[ESTARGZ_DIGEST]})

    reference = ordinary_image(tmp_path / "layout", pack, [tar_bytes(SMALL)])
    report = index(reference)
    assert (report.by_table, report.table_problem) == (True, "")
    assert differences(reference, tmp_path / "store") == []


def test_both_digests_of_a_table_count(tmp_path: Path) -> None:
    for number, key in enumerate((ESTARGZ_DIGEST, STARGZ_CHECKSUM)):

        def pack(data: bytes, wrong: str = key) -> LazyLayer:
            layer = stargz_chunked(data)
            return LazyLayer(layer.data, {**layer.annotations, wrong: "sha256:" + "0" * 64})

        reference = ordinary_image(tmp_path / str(number), pack, [tar_bytes(SMALL)])
        report = index(reference)
        assert not report.by_table
        assert "not the one in the manifest" in report.table_problem


def test_parts_that_share_a_member(tmp_path: Path) -> None:
    def shared(data: bytes) -> LazyLayer:
        return estargz(data, share_bytes=20_000)

    reference = ordinary_image(tmp_path / "layout", shared)
    assert index(reference).by_table
    with open_image(reference, store=tmp_path / "store") as image:
        contexts = image.blobs[0].table.zran_contexts
        assert len(contexts) < image.blobs[0].table.chunk_count
    assert differences(reference, tmp_path / "store") == []


Change = Callable[[list[dict[str, Any]]], None]


def each(kind: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["type"] == kind:
                change(entry)

    return apply


UNUSABLE: dict[str, tuple[Change, str]] = {
    "no digest": (each("reg", lambda e: [e.pop("chunkDigest", 0), e.pop("digest", 0)]), "SHA-256"),
    "md5": (each("reg", lambda e: e.update(digest="md5:00", chunkDigest="md5:00")), "SHA-256"),
    "no place": (each("reg", lambda e: e.update(offset=1 << 40, endOffset=1 << 41)), "order|plain"),
    "order": (lambda entries: entries[1:] == entries.reverse(), "order|belongs|behind"),
    "type": (each("dir", lambda e: e.update(type="door")), "unknown type"),
    "time": (each("dir", lambda e: e.update(modtime="2024-13-01T00:00:00Z")), "time"),
    "name": (each("reg", lambda e: e.update(name="d/\ufffd")), "cannot hold|another file"),
    "path": (each("symlink", lambda e: e.update(name="../x")), "upwards"),
    "size": (each("reg", lambda e: e.update(size=9 << 20)), "make up|no place|uneven"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unusable_table_is_not_used(kind: str, case: str, tmp_path: Path) -> None:
    change, problem = UNUSABLE[case]

    def broken(data: bytes) -> LazyLayer:
        return KINDS[kind](data, change=change)

    reference = ordinary_image(tmp_path / "layout", broken)
    refused(index(reference), problem)
    assert differences(reference, tmp_path / "store") == []


def refused(report: IndexReport, problem: str) -> None:
    assert not report.by_table
    assert re.search(problem, report.table_problem), report.table_problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_the_manifest_does_not_pin_is_not_used(kind: str, tmp_path: Path) -> None:
    def unpinned(data: bytes) -> LazyLayer:
        layer = KINDS[kind](data)
        names = {name: value for name, value in layer.annotations.items() if "posit" in name}
        return layer._replace(annotations=names)

    def wrong(data: bytes) -> LazyLayer:
        layer = KINDS[kind](data)
        changed = {
            name: value[:-4] + "0000" if "sha256" in value else value
            for name, value in layer.annotations.items()
        }
        return layer._replace(annotations=changed)

    def uncompressed(data: bytes) -> LazyLayer:
        return LazyLayer(data, KINDS[kind](data).annotations)

    refused(index(ordinary_image(tmp_path / "1", unpinned)), "^$")
    refused(index(ordinary_image(tmp_path / "2", wrong)), "not the one in the manifest")
    refused(index(ordinary_image(tmp_path / "3", uncompressed)), "footer|not the one|table cannot")


def test_layers_without_a_table_beside_others(tmp_path: Path) -> None:
    def mixed(data: bytes) -> LazyLayer:
        return estargz(data) if data == upper_layer() else LazyLayer(data, {})

    reference = ordinary_image(tmp_path / "layout", mixed)
    refused(index(reference), "no table of contents")
    assert differences(reference, tmp_path / "store") == []


@pytest.mark.parametrize(
    ("chunk_bytes", "used", "chunk_size"),
    [(65536, True, 65536), (100_000, False, 128 << 10), (1 << 23, True, 4 << 20)],
)
def test_chunks_must_be_those_of_an_image(
    chunk_bytes: int, used: bool, chunk_size: int, tmp_path: Path
) -> None:
    def cut(data: bytes) -> LazyLayer:
        return estargz(data, chunk_bytes)

    reference = ordinary_image(tmp_path / "layout", cut)
    report = index(reference)
    assert report.by_table == used
    with open_image(reference, store=tmp_path / "store") as image:
        assert image.bootstrap.chunk_size == chunk_size
    assert differences(reference, tmp_path / "store") == []


def test_tables_can_be_left_alone(tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", estargz)
    refused(index(reference, by_table=False), "^$")


@pytest.mark.tools
def test_zstd_chunked_of_skopeo(tmp_path: Path) -> None:
    [skopeo] = tools.require_tool("skopeo")
    plain = ordinary_image(tmp_path / "plain", "gzip -1")
    reference = f"oci:{tmp_path / 'layout'}:latest"
    command = [skopeo, "copy", "-q", "--insecure-policy", "--dest-compress"]
    command += ["--dest-compress-format", "zstd:chunked", plain, reference]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    report = index(reference)
    assert (report.by_table, report.table_problem) == (True, "")
    # skopeo 1.9 leaves out zeros behind the end of the archive and keeps the diff_id.
    with pytest.raises(IntegrityError, match="has the diff_id"):
        differences(reference, tmp_path / "store")
    with (
        open_image(reference, store=tmp_path / "other") as image,
        open_source_image(plain) as wanted,
    ):
        assert [str(one) for one in compare(wanted, image)] == []
