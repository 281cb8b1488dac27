"""Pieces from a spool file to a packed file."""

from __future__ import annotations

import random
import tempfile
from array import array

import pytest

from lamina.build import pack
from lamina.build.pack import Segment, pack_segment
from lamina.build.regions import RegionFile
from lamina.codec.compress import Compressor, decompress
from lamina.errors import StoreError

noise = random.Random(2)
TEXT = b"some text that repeats itself. " * 4000
NOISE = noise.randbytes(50_000)


@pytest.mark.parametrize("compressor", [Compressor.ZSTD, Compressor.LZ4_BLOCK, Compressor.NONE])
@pytest.mark.parametrize("window", [1 << 22, 64 << 10])
def test_pieces_come_back(
    compressor: Compressor, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "WINDOW_BYTES", window)
    monkeypatch.setattr(pack, "WRITE_BYTES", 3000)
    spool_bytes = bytes(512) + TEXT + bytes(512) + NOISE + TEXT[:777]
    # Two full chunks, then a pack whose members lie before them and around.
    extents = [(512, 100_000), (512 + len(TEXT) + 512, 50_000), (0, 512), (len(spool_bytes) - 9, 9)]
    with tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as packed:
        spool.write(spool_bytes)
        spool.flush()
        segment = Segment(
            7000,
            array("Q", [offset for offset, _ in extents]),
            array("I", [size for _, size in extents]),
            array("I", [1, 1, 2]),
        )
        sizes = pack_segment(segment, spool.fileno(), packed.fileno(), compressor, None)
        with RegionFile(packed.fileno(), [(7000, sum(sizes))], b"") as stored_file:
            stored = stored_file.read()
    plain = [
        TEXT[:100_000],
        NOISE,
        bytes(512) + spool_bytes[-9:],
    ]
    assert len(sizes) == 3
    assert sizes[1] == len(NOISE), "what does not shrink is stored as it is"
    for expected, size in zip(plain, sizes, strict=True):
        piece, stored = stored[:size], stored[size:]
        if size != len(expected):
            assert size < len(expected)
            piece = decompress(compressor, piece, len(expected))
        assert piece == expected
    assert stored == b""
    assert (sizes[0] == 100_000) == (compressor == Compressor.NONE)


def test_a_short_spool_is_an_error() -> None:
    segment = Segment(0, array("Q", [0]), array("I", [100]), array("I", [1]))
    with (
        tempfile.TemporaryFile() as spool,
        tempfile.TemporaryFile() as packed,
        pytest.raises(StoreError, match="ends early"),
    ):
        pack_segment(segment, spool.fileno(), packed.fileno(), Compressor.ZSTD, 3)


def test_region_file_seeks_and_ends() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        regions = [(2, 3), (5, 0), (8, 2)]
        with RegionFile(file.fileno(), regions, b"tail") as source:
            assert source.size_bytes == 9
            assert source.read() == b"23489tail"
            assert source.read(5) == b""
            for start in range(10):
                assert source.seek(start) == source.tell() == start
                assert source.read(4) == b"23489tail"[start : start + 4]
            assert source.seek(-2, 2) == 7
            assert source.read() == b"il"
        source = RegionFile(file.fileno(), [(5, 20)], b"")
        with source, pytest.raises(StoreError, match="ends early"):
            source.read()
