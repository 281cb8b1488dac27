"""Parsers of the tables of contents that layers bring along."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support import lazy_layers
from tests.support.layers import CHARACTER, Item, folder, hard_link, symlink, tar_bytes

from lamina.archive import estargz, tar, zstd_chunked
from lamina.archive.layer_toc import (
    MAX_TOC_OBJECTS,
    LayerToc,
    group_chunks,
    parse_entries,
    tar_entry,
)
from lamina.errors import FormatError, IntegrityError

ITEMS = [
    folder("d", 0o1777, mtime=1.0),
    Item("d/big", bytes(range(256)) * 40, mode=0o4755, uid=70_000, xattrs={"user.x": "y"}),
    Item("d/empty"),
    symlink("d/link", "../etc"),
    hard_link("d/hard", "d/big"),
    Item("d/null", kind=CHARACTER, device=(1, 300)),
]


def read_table(kind: str, layer: lazy_layers.LazyLayer) -> LayerToc:
    """Find and parse the table of a layer as an index does."""
    data, notes = layer
    if kind == "estargz":
        offset, size = estargz.toc_place(data[-estargz.FOOTER_BYTES :], len(data))
        digest = notes[lazy_layers.ESTARGZ_DIGEST]
        return estargz.parse_toc(data[offset : offset + size], offset, digest)
    position = notes[lazy_layers.CHUNKED_POSITION]
    offset, size, plain_size = zstd_chunked.toc_place(position, len(data))
    digest = notes[lazy_layers.CHUNKED_CHECKSUM]
    return zstd_chunked.parse_toc(data[offset : offset + size], offset, plain_size, digest)


@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked"])
def test_entries_are_those_of_the_tar_stream(kind: str) -> None:
    data = tar_bytes(ITEMS)
    write = lazy_layers.estargz if kind == "estargz" else lazy_layers.zstd_chunked
    table = read_table(kind, write(data, 4096))
    wanted = [entry._replace(data_offset=0) for entry in walk(data)]
    assert [file.entry for file in table.files] == wanted
    parts = [chunk.size for chunk in table.files[1].chunks]
    assert parts == ([4096, 4096, 2048] if kind == "estargz" else [10_240])
    if kind == "estargz":
        assert table.itself is not None
        assert table.itself.entry.path == estargz.TABLE_PATH
        assert json.loads(table.itself.data)["version"] == 1


def walk(data: bytes) -> list[tar.Entry]:
    return list(tar.walk(tar.BlockReader.over(data)))


def document(*entries: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"version": 1, "entries": list(entries), **more}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        b'{"version":1,"entries":' + b"[" * 100_000,
        document(version=2),
        document({"name": "x"}),
        document({"name": "x", "type": "reg", "size": -1}),
        document({"name": "x", "type": "reg", "size": 1 << 45}),
        document({"name": "x", "type": "reg", "xattrs": {"user.x": "%"}}),
        b'{"version":1,"entries":[{"name":"\xff","type":"dir"}]}',
        b"{}" * (MAX_TOC_OBJECTS + 1),
    ],
)
def test_malformed_tables(data: bytes) -> None:
    with pytest.raises(FormatError, match="table of contents"):
        parse_entries(data)


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "door"},
        {"name": "a/../../b"},
        {"name": "a\0b"},
        {"name": "a\ufffd"},
        {"type": "symlink"},
        {"uid": 1 << 32},
        {"modtime": "yesterday"},
        {"modtime": "2024-02-30T00:00:00Z"},
        {"modtime": "0001-01-01T00:00:00+23:59"},
        {"xattrs": {"": "eA=="}},
    ],
)
def test_impossible_entries(entry: dict[str, Any]) -> None:
    (parsed,) = parse_entries(document({"name": "x", "type": "dir", **entry}))
    with pytest.raises(FormatError):
        tar_entry(parsed)


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("", (0, 0)),
        ("1970-01-01T00:00:01Z", (1, 0)),
        ("1970-01-01T01:00:00.5+01:00", (0, 500_000_000)),
        ("1969-12-31T23:59:59.000000001Z", (-1, 1)),
    ],
)
def test_times(text: str, when: tuple[int, int]) -> None:
    (parsed,) = parse_entries(document({"name": "x", "type": "dir", "modtime": text}))
    entry = tar_entry(parsed)
    assert (entry.mtime, entry.mtime_ns) == when


@pytest.mark.parametrize(
    "entries",
    [
        [{"name": "x", "type": "chunk"}],
        [{"name": "x", "type": "dir"}, {"name": "x", "type": "chunk"}],
        [{"name": "x", "type": "reg"}, {"name": "y", "type": "chunk"}],
    ],
)
def test_chunks_of_nothing(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(FormatError, match="chunk"):
        list(group_chunks(parse_entries(document(*entries))))


def test_footers() -> None:
    footer = lazy_layers.estargz_footer(1000)
    assert estargz.toc_place(footer, 1000 + 51 + 7) == (1000, 7)
    for broken in (footer[:-1], footer[::-1], bytes(51), footer + b"\0"):
        with pytest.raises(FormatError, match="no eStargz footer"):
            estargz.toc_place(broken, 5000)
    for size in (1000, 1051, 1000 + 51 + estargz.MAX_STORED_TOC_BYTES + 1):
        with pytest.raises(FormatError, match="puts"):
            estargz.toc_place(footer, size)


@pytest.mark.parametrize(
    "position",
    ["", "1:2:3", "10:5:9:2", "a:b:c:1", "10:5:9:1:1", "10:91:9:1", "8:9:9:1", "99:0:1:1"],
)
def test_positions(position: str) -> None:
    with pytest.raises(FormatError, match=r"zstd:chunked table"):
        zstd_chunked.toc_place(position, 100)
    assert zstd_chunked.toc_place("10:5:9:1", 100) == (10, 5, 9)


def test_another_table_than_promised() -> None:
    layer = lazy_layers.estargz(tar_bytes(ITEMS))
    wrong = {lazy_layers.ESTARGZ_DIGEST: "sha256:" + "0" * 64}
    with pytest.raises(IntegrityError, match="not the one in the manifest"):
        read_table("estargz", layer._replace(annotations=wrong))
