"""Access points of gzip and zstd streams, against whole decoding."""

from __future__ import annotations

import ctypes
import gzip
import io
import random
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.archive import deflate_library as libz
from lamina.archive.access_points import PointMap
from lamina.archive.gzip_points import GzipPoints
from lamina.archive.zstd_points import ZstdPoints
from lamina.codec.deflate_span import inflate_span, prime, priming_blocks
from lamina.codec.zstd_span import decode_frames
from lamina.errors import Error, FormatError

isal_zlib = pytest.importorskip("isal.isal_zlib")
FIXTURES = Path(__file__).parents[3] / ".." / "shared" / "fixtures" / "rafs" / "zran"
ENGINES = (zlib, isal_zlib)


def words(size: int, seed: int = 1) -> bytes:
    """Return text-like bytes with near and far repeats and some noise."""
    dice = random.Random(seed)
    vocabulary = [dice.randbytes(dice.randint(2, 12)) for _ in range(400)]
    parts, length = [], 0
    while length < size:
        part = dice.choice(vocabulary) if dice.random() < 0.98 else dice.randbytes(3000)
        parts.append(part)
        length += len(part)
    return b"".join(parts)[:size]


def index_gzip(data: bytes, spacing: int, piece: int = 65536) -> tuple[PointMap, bytes]:
    source = io.BytesIO(data)
    with GzipPoints(lambda: source.read(piece), spacing) as stream:
        plain = b"".join(iter(lambda: stream.read(), b""))
        return stream.map, plain


def check_all_points(data: bytes, points: PointMap, plain: bytes) -> int:
    ends = [point.out_offset for point in points.points[1:]] + [len(plain)]
    for point, end in zip(points.points, ends, strict=True):
        stored = data[point.in_offset : points.in_after(end, len(data))]
        size = end - point.out_offset
        for engine in ENGINES:
            got = inflate_span(stored, point.bits, point.byte, point.window, size, module=engine)
            assert got == plain[point.out_offset : end]
    return len(points.points)


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("engine", ENGINES)
def test_priming_blocks_are_empty_and_leave_the_right_room(bits: int, engine: object) -> None:
    _, length = priming_blocks(bits)
    assert (length + bits) % 8 == 0
    # A last fixed block after the primer: 1, 01, then the end of block.
    value, size = priming_blocks(bits)
    total = size + 10
    data = (value | 0b011 << size).to_bytes((total + 7) // 8, "little")
    inflater = engine.decompressobj(-15)  # type: ignore[attr-defined]
    assert inflater.decompress(data) == b""
    assert inflater.eof
    assert len(prime(bits, 255)) == (length + bits) // 8


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
def test_every_point_extracts_on_both_engines(level: int, piece: int) -> None:
    plain = words(60_000 if piece == 1 else 1_500_000)
    data = gzip.compress(plain, level)
    points, decoded = index_gzip(data, 4096, piece)
    assert decoded == plain
    assert check_all_points(data, points, plain) >= (2 if level and piece > 1 else 1)


def test_all_libraries_stop_at_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(words(3_000_000), 6)
    wanted, plain = index_gzip(data, 50_000)
    plain_zlib = libz._zlib(ctypes.CDLL("libz.so.1"))
    monkeypatch.setattr(libz, "load_library", lambda: plain_zlib)
    found, again = index_gzip(data, 50_000)
    assert again == plain
    assert found.points == wanted.points
    assert len(found.points) > 10


def test_members_names_padding_and_sync_flushes() -> None:
    plain = words(400_000)
    buffer = io.BytesIO()
    with gzip.GzipFile("a name", "wb", 6, buffer, 1234) as file:
        file.write(plain[:100_000])
    engine = zlib.compressobj(6, zlib.DEFLATED, 31)
    for start in range(100_000, 300_000, 10_000):
        buffer.write(engine.compress(plain[start : start + 10_000]))
        buffer.write(engine.flush(zlib.Z_SYNC_FLUSH if start % 20_000 else zlib.Z_FULL_FLUSH))
    buffer.write(engine.flush() + gzip.compress(b"") + gzip.compress(plain[300_000:]) + bytes(700))
    data = buffer.getvalue()
    points, decoded = index_gzip(data, 1000, 3)
    assert decoded == plain
    assert check_all_points(data, points, plain) > 10


@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.sampled_from([0, 1, 6, 9])), max_size=4),
    st.integers(1, 9000),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=30)
def test_any_members_and_any_spacing(
    members: list[tuple[int, int]], spacing: int, seed: int
) -> None:
    parts = [(words(size, seed + number), level) for number, (size, level) in enumerate(members)]
    plain = b"".join(part for part, _ in parts)
    data = b"".join(gzip.compress(part, level) for part, level in parts) or gzip.compress(b"")
    points, decoded = index_gzip(data, spacing)
    assert decoded == plain
    check_all_points(data, points, plain)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 255))
@settings(deadline=None, max_examples=150)
def test_damage_is_an_error_or_harmless(cut: int, place: int, flip: int) -> None:
    plain = words(50_000)
    data = gzip.compress(plain[:30_000]) + gzip.compress(plain[30_000:])
    first = len(gzip.compress(plain[:30_000]))
    length = cut % len(data)
    if length != first:
        with pytest.raises(FormatError):
            index_gzip(data[:length], 4096)
    damaged = bytearray(data)
    damaged[place % len(data)] ^= flip
    points, _ = index_gzip(data, 4096)
    for point in points.points:
        size = len(plain) - point.out_offset
        try:
            got = inflate_span(
                damaged[point.in_offset :], point.bits, point.byte, point.window, size
            )
        except FormatError:
            continue
        assert len(got) == size


@pytest.mark.parametrize("engine", ENGINES)
def test_a_point_before_the_trailer_of_a_member(engine: object) -> None:
    plain = words(40_000)
    first = gzip.compress(plain[:9000])
    data = first + gzip.compress(plain[9000:20_000]) + gzip.compress(plain[20_000:])
    rest = data[len(first) - 8 :]
    window = plain[:9000]
    assert inflate_span(rest, 3, 7, window, 31_000, module=engine) == plain[9000:]
    with pytest.raises(FormatError):
        inflate_span(rest[:-20], 3, 7, window, 31_000, module=engine)


def test_the_input_of_a_member_reaches_behind_the_next_header() -> None:
    first, second = gzip.compress(words(9000)), gzip.compress(words(9000, 2))
    points, _ = index_gzip(first + second, 1)
    end = points.in_after(9000, len(first + second))
    assert len(first) + len(second) >= end > len(first) + 10
    assert points.in_after(18_000, len(first + second)) <= len(first + second)


def test_thousands_of_tiny_members_take_little_time() -> None:
    data = gzip.compress(b"") * 60_000
    with pytest.raises(FormatError, match="0 bytes instead of 5"):
        inflate_span(data[10:], 0, 0, b"", 5)


@pytest.mark.parametrize("name", ["bgzip", "zran-two-streams", "zran-single-stream"])
@pytest.mark.parametrize("spacing", [1, 2048, 65536])
def test_all_points_of_the_fixtures(name: str, spacing: int) -> None:
    path = FIXTURES / f"{name}.tar.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    data = path.read_bytes()
    points, plain = index_gzip(data, spacing)
    assert plain == gzip.decompress(data)
    assert check_all_points(data, points, plain) >= (20 if name == "bgzip" else 1)


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=5), st.integers(1, 1 << 20))
@settings(deadline=None, max_examples=30)
def test_zstd_frames(sizes: list[int], piece: int) -> None:
    parts = [words(size, size) for size in sizes]
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    data = skippable.join(zstandard.compress(part) for part in parts) + skippable
    source = io.BytesIO(data)
    stream = ZstdPoints(lambda: source.read(max(piece, 100)))
    plain = b"".join(iter(lambda: stream.read(), b""))
    assert plain == b"".join(parts)
    # A frame of nothing is no point of its own, unless it is the last.
    parts = [part for part in parts[:-1] if part] + parts[-1:]
    assert len(stream.map.points) == len(parts)
    # What is skipped behind the last frame is not read with it.
    assert stream.map.ins[-1] == len(data) - len(skippable)
    for point, part in zip(stream.map.points, parts, strict=True):
        assert decode_frames(data[point.in_offset :], len(part)) == part


@given(st.integers(0, 10**9), st.integers(1, 255))
@settings(deadline=None, max_examples=100)
def test_damaged_frames_are_errors_or_bounded(place: int, flip: int) -> None:
    plain = words(40_000)
    data = bytearray(zstandard.compress(plain) + zstandard.compress(plain))
    with pytest.raises(FormatError):
        decode_frames(data[: place % len(data)], 2 * len(plain))
    data[place % len(data)] ^= flip
    with suppress(Error):
        assert len(decode_frames(data, 2 * len(plain))) == 2 * len(plain)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 5, 30]), st.sampled_from([0, 0, 3, 10, 40]))),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 30))),
)
def test_many_pieces_are_found_as_each(
    steps: list[tuple[int, int]], pieces: list[tuple[int, int]]
) -> None:
    points = PointMap()
    in_offset = out_offset = 0
    for in_bytes, out_bytes in steps:
        points.add(in_offset, out_offset)
        in_offset, out_offset = in_offset + in_bytes, out_offset + out_bytes
    size = in_offset + 100
    starts, ends = points.spans([at for at, _ in pieces], [length for _, length in pieces], size)
    assert list(starts) == [points.in_before(at) for at, _ in pieces]
    assert list(ends) == [points.in_after(at + length, size) for at, length in pieces]
