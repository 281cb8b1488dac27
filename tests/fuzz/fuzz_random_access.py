"""Access points: any bytes, indexed and inflated, give bounded output or an error."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable

import zstandard

from lamina.archive.gzip_points import GzipPoints
from lamina.archive.zstd_points import ZstdPoints
from lamina.codec.deflate_span import inflate_span
from lamina.codec.zstd_span import decode_frames
from lamina.errors import Error

MAX_OUTPUT = 1 << 20


def target(data: bytes) -> None:
    """Feed the bytes to every reader."""
    bits, byte = (data[0] & 7, data[1]) if len(data) > 1 else (0, 0)
    decoders: tuple[Callable[[], bytes], ...] = (
        lambda: inflate_span(data[2:], bits, byte, data[-100:], MAX_OUTPUT),
        lambda: decode_frames(data, MAX_OUTPUT),
        lambda: _index(GzipPoints(io.BytesIO(data).read, 1)),
        lambda: _index(ZstdPoints(io.BytesIO(data).read)),
    )
    for decode in decoders:
        try:
            result = decode()
        except Error:
            continue
        assert len(result) <= MAX_OUTPUT


def _index(stream: GzipPoints | ZstdPoints) -> bytes:
    try:
        size = 0
        while size < MAX_OUTPUT and (plain := stream.read()):
            size += len(plain)
        assert all(point.out_offset <= size for point in stream.map.points)
        return b""
    finally:
        stream.close()


def seeds() -> list[bytes]:
    """Small streams of each kind."""
    text = b"the quick brown fox " * 40
    return [
        gzip.compress(text),
        gzip.compress(text)[8:],
        gzip.compress(b"") + gzip.compress(text) + bytes(9),
        zstandard.compress(text) + zstandard.compress(b""),
    ]
