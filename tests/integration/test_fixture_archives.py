"""The archives of the fixtures: tar entries as tarfile reads them, gzip as gzip does."""

from __future__ import annotations

import gzip
import tarfile

import pytest

from lamina.archive import tar
from lamina.archive.blocks import BlockReader
from lamina.archive.stream import open_layer
from tests.support.tools import require_shared

ARCHIVES = ("bgzip", "zran-single-stream", "zran-two-streams", "zran-zero-file")


def _expected(member: tarfile.TarInfo) -> tuple[object, ...]:
    kind = tarfile.REGTYPE if member.type == tarfile.AREGTYPE else member.type
    link = member.linkname.encode() if member.issym() or member.islnk() else b""
    return (
        member.name.removeprefix("./").encode(),
        kind[0],
        member.mode,
        member.uid,
        member.gid,
        int(member.mtime),
        member.size if member.isreg() else 0,
        link.removeprefix(b"./") if member.islnk() else link,
    )


def _seen(entry: tar.Entry) -> tuple[object, ...]:
    size = entry.size if entry.kind == tar.REGULAR else 0
    return (
        entry.path,
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        size,
        entry.link,
    )


def _walk(data: bytes) -> list[tuple[object, ...]]:
    return [_seen(entry) for entry in tar.walk(BlockReader.over(data))]


@pytest.mark.parametrize("name", ["all-entry-type", "all-entry-type-macos"])
def test_every_type_of_entry(name: str) -> None:
    path = require_shared("fixtures", "rafs", "tar", f"{name}.tar")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert _walk(path.read_bytes()) == [_expected(member) for member in members]


@pytest.mark.parametrize("name", ARCHIVES)
def test_gzip_with_any_members(name: str) -> None:
    path = require_shared("fixtures", "rafs", "zran", f"{name}.tar.gz")
    plain = gzip.decompress(path.read_bytes())
    with path.open("rb") as raw, open_layer(raw) as stream:
        assert stream.read() == plain
    with tarfile.open(path) as archive:
        assert _walk(plain) == [_expected(member) for member in archive.getmembers()]
