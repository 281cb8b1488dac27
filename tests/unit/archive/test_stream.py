"""Layer streams: every compression, damage, and what wants to be larger than it may."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive import stream, zstd_frames
from lamina.archive.stream import LayerStream, open_layer
from lamina.errors import FormatError, UnsupportedError

PLAIN = random.Random(1).randbytes(300_000) + bytes(700_000) + b"text " * 60_000


def read(data: bytes, **options: int) -> bytes:
    return open_layer(io.BytesIO(data), **options).read()


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


def skippable(data: bytes) -> bytes:
    return b"\x5a\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


@pytest.fixture(params=["isal", "zlib"])
def gzip_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(stream, "_gzip_reader", lambda: (gzip.GzipFile, zlib.error))


@pytest.mark.usefixtures("gzip_library")
def test_gzip_members_and_padding() -> None:
    members = gzip.compress(PLAIN[:999]) + gzip.compress(b"") + gzip.compress(PLAIN[999:])
    assert read(members) == PLAIN
    assert read(members + bytes(100_000)) == PLAIN
    many = b"".join(gzip.compress(PLAIN[i : i + 700]) for i in range(0, 70_000, 700))
    assert read(many) == PLAIN[:70_000]


@pytest.mark.usefixtures("gzip_library")
def test_damaged_gzip() -> None:
    data = gzip.compress(PLAIN)
    for broken in (data[:-1], data[:1000], data[:15]):
        with pytest.raises(FormatError, match="middle of its gzip"):
            read(broken)
    with pytest.raises(FormatError, match="after its last gzip member"):
        read(data + b"garbage" * 9)
    with pytest.raises(FormatError):
        read(data + b"g")
    with pytest.raises(FormatError, match="not valid gzip"):
        read(data[:-5] + b"xxxxx")


def test_zstd_frames_of_every_kind() -> None:
    frames = (
        skippable(b"x" * 200_000)
        + zstd(PLAIN[:400_000], write_checksum=True)
        + zstd(b"")
        + skippable(b"")
        + zstd(PLAIN[400_000:], write_content_size=False)
    )
    assert open_layer(io.BytesIO(frames)).compression == "zstd"
    assert read(frames) == PLAIN
    assert read(frames + bytes(5000)) == PLAIN


def test_zstd_in_one_segment_and_streamed() -> None:
    for size in (1, 200, 255, 256, 65_791, 65_792, 1_000_000):
        assert read(zstd(PLAIN[:size])) == PLAIN[:size]
    engine = zstandard.ZstdCompressor(level=3).compressobj()
    streamed = engine.compress(PLAIN) + engine.flush()
    assert read(streamed) == PLAIN


def test_damaged_zstd() -> None:
    data = zstd(PLAIN, write_checksum=True)
    for length in (5, 8, 1000, len(data) - 1, len(data) - 5):
        with pytest.raises(FormatError, match="middle of its zstd"):
            read(data[:length])
    with pytest.raises(FormatError, match="that are not zstd"):
        read(data + b"garbage")
    with pytest.raises(FormatError, match="not valid zstd"):
        read(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match="middle of its zstd"):
        read(skippable(b"abc")[:-1])


def test_reserved_zstd_block_type() -> None:
    head = zstd(b"")[:-3]
    with pytest.raises(FormatError, match="unknown kind"):
        read(head + (0b111).to_bytes(3, "little"))


def test_zstd_with_a_huge_window_is_refused() -> None:
    # Descriptor without content size, window descriptor of 2 GiB.
    with pytest.raises(FormatError, match="not valid zstd"):
        read(zstd_frames.MAGIC + b"\x00\xa8" + b"\x01\x00\x00" + bytes(10))


def test_plain_tar_passes_through() -> None:
    assert open_layer(io.BytesIO(PLAIN)).compression == "none"
    assert read(PLAIN) == PLAIN
    assert read(b"") == b""
    assert read(b"ab") == b"ab"


@pytest.mark.parametrize("compress", [gzip.compress, zstd, bytes])
def test_bombs_are_bounded(compress: object) -> None:
    data = compress(bytes(50_000_000))  # type: ignore[operator]
    layer = open_layer(io.BytesIO(data), max_bytes=1_000_000)
    total = 0
    with pytest.raises(FormatError, match="more than the allowed"):
        while piece := layer.read(1 << 20):
            assert len(piece) <= 1 << 20
            total += len(piece)
    assert total <= 1_000_000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=3000), max_size=5),
    st.sampled_from(("gzip", "zstd")),
    st.integers(1, 5000),
)
def test_any_reads_give_the_same_bytes(parts: list[bytes], kind: str, size: int) -> None:
    compress = gzip.compress if kind == "gzip" else zstd
    layer = LayerStream(io.BytesIO(b"".join(map(compress, parts))))  # type: ignore[arg-type]
    pieces = list(iter(lambda: layer.read(size), b""))
    assert all(len(piece) <= size for piece in pieces)
    assert b"".join(pieces) == b"".join(parts)
    assert layer.read(size) == b""


def test_readinto() -> None:
    buffer = bytearray(10)
    layer = open_layer(io.BytesIO(gzip.compress(b"0123456789ab")))
    assert layer.readable()
    assert layer.readinto(buffer) == 10
    assert layer.readinto(buffer) == 2
    assert bytes(buffer) == b"ab23456789"


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/octet-stream",
    ],
)
def test_media_types_of_layers(media_type: str) -> None:
    # What is inside counts, not what the type says of its compression.
    assert open_layer(io.BytesIO(gzip.compress(b"abc")), media_type).read() == b"abc"


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.nydus.blob.v1",
        "application/vnd.wasm.content.layer.v1+wasm",
        "text/plain",
    ],
)
def test_media_types_of_other_things(media_type: str) -> None:
    with pytest.raises(UnsupportedError):
        open_layer(io.BytesIO(b""), media_type)


def test_other_compressions_are_no_tar() -> None:
    # bzip2 is not sniffed: it comes through as it is, and the tar walker refuses it.
    data = bz2.compress(b"abc")
    assert read(data) == data
