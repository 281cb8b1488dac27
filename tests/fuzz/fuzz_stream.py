"""Fuzz the decompressing layer stream."""

from __future__ import annotations

import gzip
import io

import zstandard

from lamina.archive.stream import LayerStream
from lamina.errors import Error

LIMIT_BYTES = 1 << 22
READ_BYTES = 1 << 18


def target(data: bytes) -> None:
    """Read the bytes as a layer; output is bounded in each read and in all."""
    stream = LayerStream(io.BytesIO(data), LIMIT_BYTES)
    total = 0
    try:
        while piece := stream.read(READ_BYTES):
            assert len(piece) <= READ_BYTES
            total += len(piece)
    except Error:
        pass
    assert total <= LIMIT_BYTES


def seeds() -> list[bytes]:
    """Members and frames of every kind."""
    text = b"some text " * 200
    compress = zstandard.ZstdCompressor(level=3, write_checksum=True).compress
    streamed = zstandard.ZstdCompressor(level=3).compressobj()
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    return [
        text,
        gzip.compress(text) + gzip.compress(b"") + bytes(9),
        gzip.compress(bytes(1 << 20)),
        skippable + compress(text) + skippable + compress(b""),
        streamed.compress(text) + streamed.flush(),
        compress(bytes(1 << 20)),
    ]
