"""Compressed layers that are mostly headers: an error or the right bytes, in little memory."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
import zstandard

from lamina.archive import access_points
from lamina.archive.gzip_points import GzipPoints
from lamina.archive.stream import open_layer
from lamina.archive.zstd_points import ZstdPoints
from lamina.errors import FormatError, UnsupportedError

pytest.importorskip("isal.igzip")

PLAIN = bytes(1024)
LONG = b"n" * (600 << 10)
EXTRA = struct.pack("<H", 0xFFFF) + b"e" * 0xFFFF
NAME, COMMENT, WITH_EXTRA = 8, 16, 4


def member(flags: int, fields: bytes, plain: bytes = PLAIN) -> bytes:
    """A gzip member with these header fields (RFC 1952 §2.3)."""
    engine = zlib.compressobj(1, zlib.DEFLATED, -15)
    data = engine.compress(plain) + engine.flush()
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + fields
    return head + data + struct.pack("<II", zlib.crc32(plain), len(plain))


def converted(data: bytes) -> bytes:
    """Decompress as ``lamina convert`` does."""
    return open_layer(io.BytesIO(data)).read()


def indexed(data: bytes) -> bytes:
    """Decompress as ``lamina index`` does."""
    source = io.BytesIO(data)
    kind = GzipPoints if data.startswith(b"\x1f\x8b") else ZstdPoints
    stream = kind(lambda: source.read(1 << 20))
    return b"".join(iter(stream.read, b""))


@pytest.mark.parametrize("read", [converted, indexed])
@pytest.mark.parametrize(
    "data",
    [
        member(NAME, LONG + b"\0"),
        member(COMMENT, LONG + b"\0"),
        member(WITH_EXTRA | NAME | COMMENT, EXTRA + LONG + b"\0" + LONG + b"\0"),
        member(0, b"") + member(NAME, LONG + b"\0"),
        member(0, b"")[:3] + b"\x08" + bytes(6) + LONG,
    ],
    ids=["name", "comment", "all", "second member", "without end"],
)
def test_a_gzip_header_of_600_kib(read: object, data: bytes) -> None:
    with pytest.raises(FormatError, match="gzip"):
        read(data)  # type: ignore[operator]


@pytest.mark.parametrize("read", [converted, indexed])
def test_what_headers_may_have(read: object) -> None:
    parts = [
        member(NAME, b"n" * 65_000 + b"\0"),
        member(WITH_EXTRA, EXTRA),
        member(NAME | COMMENT, b"a\0b\0"),
    ]
    assert read(b"".join(parts)) == PLAIN * 3  # type: ignore[operator]
    assert read(member(0, b"", b"") * 5000 + parts[0]) == PLAIN  # type: ignore[operator]
    frames = zstandard.compress(b"") * 500 + b"\x50\x2a\x4d\x18\0\0\0\0" * 500
    assert read(frames + zstandard.compress(PLAIN)) == PLAIN  # type: ignore[operator]


@pytest.mark.parametrize("limit", ["MAX_BOUNDARIES", "MAX_POINTS"])
def test_a_flood_of_frames_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes memory that is many times its own bytes."""
    monkeypatch.setattr(access_points, limit, 1000)
    indexed(zstandard.compress(b"x") * 400)
    with pytest.raises(UnsupportedError, match="too much to index"):
        indexed(zstandard.compress(b"x") * 1100)


@pytest.mark.parametrize("limit", ["MAX_BOUNDARIES", "MAX_POINTS"])
def test_a_flood_of_blocks_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_points, limit, 1000)

    def read(count: int) -> int:
        source = io.BytesIO(member(0, b"", b"x") * count)
        with GzipPoints(lambda: source.read(1 << 20), spacing_bytes=1) as stream:
            return sum(len(data) for data in iter(stream.read, b""))

    assert read(300) == 300
    with pytest.raises(UnsupportedError, match="too much to index"):
        read(1100)


def test_members_of_nothing_are_no_points() -> None:
    source = io.BytesIO(zstandard.compress(b"") * 3000 + zstandard.compress(b"x"))
    stream = ZstdPoints(lambda: source.read(1 << 20))
    assert stream.read() == b"x"
    assert len(stream.map.points) == 1
