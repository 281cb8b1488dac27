"""Pieces are compressed where that makes them smaller."""

from __future__ import annotations

import random

import pytest

from lamina.build.pack import pack_pieces
from lamina.codec.compress import Compressor, decompress

noise = random.Random(2)
TEXT = b"some text that repeats itself. " * 4000
NOISE = noise.randbytes(50_000)


@pytest.mark.parametrize("compressor", [Compressor.ZSTD, Compressor.LZ4_BLOCK, Compressor.NONE])
def test_pieces_come_back(compressor: Compressor) -> None:
    view = memoryview(TEXT)
    pieces = [[view[:70_000], view[70_000:100_000]], [NOISE], [bytearray(512) + NOISE[:9]], [b"x"]]
    plain = [b"".join(parts) for parts in pieces]
    packed = pack_pieces(pieces, compressor, None)
    assert packed.plain_sizes == list(map(len, plain))
    assert packed.stored[1] == NOISE, "what does not shrink is stored as it is"
    assert packed.stored[3] == b"x"
    for expected, stored in zip(plain, packed.stored, strict=True):
        if len(stored) != len(expected):
            assert len(stored) < len(expected)
            stored = decompress(compressor, stored, len(expected))
        assert stored == expected
    assert (packed.stored[0] == plain[0]) == (compressor == Compressor.NONE)
