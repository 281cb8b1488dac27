"""Layers as stargz's own library writes them: eStargz and zstd:chunked, indexed by their tables."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lamina.build.convert import convert
from lamina.build.source_image import open_source_image
from lamina.image.base import Image
from lamina.image.compare import compare
from lamina.oci.reference import parse_reference
from tests.integration.test_index import index, ordinary_image, used_index
from tests.support.index_layers import content, upper_layer
from tests.support.layers import Item, folder, hard_link, symlink, tar_bytes
from tests.support.lazy_layers import LazyLayer
from tests.support.opening import open_image
from tests.support.tools import require_peer

SECOND = 1_700_000_000
TIMES = {"down": 0.25, "half": 0.5, "up": 0.75, "whole": 0.0}
ROUNDED = {"down": 0, "half": 1, "up": 1, "whole": 0}


def lower_layer() -> bytes:
    items = [folder("d", 0o711), symlink("d/link", "big"), Item("d/empty"), Item("d/gone", b"gone")]
    items += [Item(f"d/{number:02}", content(number * 977, number)) for number in range(40)]
    items += [Item("d/big", content(5_400_001, 7)), hard_link("d/hard", "d/big")]
    items += [Item(name, b"x", mtime=SECOND + part) for name, part in TIMES.items()]
    return tar_bytes([*items, Item("early", mtime=0.75)])


class Stargz:
    """Compresses tars by the peer program."""

    def __init__(self, work: Path, *options: str) -> None:
        self._program = require_peer("estargz")
        self._work = work
        self._options = options

    def __call__(self, data: bytes) -> LazyLayer:
        source, layer = self._work / "in.tar", self._work / "layer"
        source.write_bytes(data)
        command: list[str | Path] = [self._program, *self._options, "-in", source, "-out", layer]
        made = subprocess.run(command, check=True, capture_output=True, timeout=120)
        return LazyLayer(layer.read_bytes(), json.loads(made.stdout)["annotations"])


KINDS = {
    "estargz": ("-kind", "estargz"),
    "estargz in small parts": ("-kind", "estargz", "-chunk", "65536"),
    "estargz with shared members": ("-kind", "estargz", "-min-chunk", "50000"),
    "zstd:chunked": ("-kind", "zstdchunked"),
    "zstd:chunked in small parts": ("-kind", "zstdchunked", "-chunk", "65536"),
    "zstd:chunked with shared frames": ("-kind", "zstdchunked", "-min-chunk", "50000"),
}


def differences(wanted: Image, found: Image) -> list[str]:
    return [str(one) for one in compare(wanted, found)]


def times(image: Image) -> dict[str, tuple[int, int]]:
    stats = {name: image.stat(name.encode()) for name in TIMES}
    return {name: (stat.mtime - SECOND, stat.mtime_ns) for name, stat in stats.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_reading_gives_one_tree(kind: str, tmp_path: Path) -> None:
    pack = Stargz(tmp_path, *KINDS[kind])
    reference = ordinary_image(tmp_path / "layout", pack, [lower_layer(), upper_layer()])
    convert(parse_reference(reference), parse_reference(f"oci:{tmp_path / 'native'}:x"))
    with open_source_image(reference) as wanted:
        expected = {name: (seconds, 0) for name, seconds in ROUNDED.items()}
        assert times(wanted) == expected
        assert wanted.stat(b"early").mtime == 0
        for by_table in (True, False):
            report = index(reference, by_table=by_table)
            assert (report.by_table, report.table_problem) == (by_table, "")
            store = tmp_path / f"store-{by_table}"
            assert used_index(reference, store) == report.digest
            with open_image(reference, store=store) as image:
                assert differences(wanted, image) == []
        with open_image(f"oci:{tmp_path / 'native'}:x", store=tmp_path / "store") as native:
            assert differences(wanted, native) == []


@pytest.mark.parametrize("kept", ["containerd.io/", "io.containers."])
def test_one_annotation_is_enough_for_zstd_chunked(kept: str, tmp_path: Path) -> None:
    def pack(data: bytes) -> LazyLayer:
        layer = Stargz(tmp_path, "-kind", "zstdchunked")(data)
        notes = {key: value for key, value in layer.annotations.items() if key.startswith(kept)}
        assert len(notes) < len(layer.annotations)
        return LazyLayer(layer.data, notes)

    reference = ordinary_image(tmp_path / "layout", pack, [lower_layer()])
    assert index(reference).by_table
    with (
        open_image(reference, store=tmp_path / "store") as image,
        open_source_image(reference) as wanted,
    ):
        assert differences(wanted, image) == []
        assert times(image) == {name: (seconds, 0) for name, seconds in ROUNDED.items()}


@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked"])
def test_the_layers_are_not_read(kind: str, tmp_path: Path) -> None:
    reference = ordinary_image(tmp_path / "layout", Stargz(tmp_path, *KINDS[kind]), [lower_layer()])
    index(reference)
    with open_image(reference, store=tmp_path / "store") as image:
        assert image.open("/d/39").read() == content(39 * 977, 39)
        assert image.statistics.requests == 1
        assert 0 < image.statistics.fetched_bytes < 60_000
