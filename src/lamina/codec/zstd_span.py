"""Decode a run of zstd frames that was cut out of a longer stream (RFC 8878 §3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_WINDOW_BYTES = 1 << 27
"""What ``zstd --long`` uses; larger windows would let one frame take gigabytes of memory."""


def decode_frames(data: Buffer, size_bytes: int, *, exact: bool = False) -> bytes:
    """Return the first *size_bytes* that whole zstd frames yield, never holding much more.

    Raises FormatError if they are damaged, cut off or yield less; if *exact*, also if more.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    parts: list[bytes] = []
    left = size_bytes
    try:
        with decompressor.stream_reader(memoryview(data), read_across_frames=True) as reader:
            while left and (plain := reader.read(min(left, 1 << 20))):
                parts.append(plain)
                left -= len(plain)
            if exact and not left and reader.read(1):
                raise FormatError(f"a zstd stream yields more than {size_bytes} bytes")
    except zstandard.ZstdError as error:
        raise FormatError(f"the zstd stream is damaged: {error}") from error
    if left:
        raise FormatError(
            f"a part of a zstd stream yields {size_bytes - left} bytes instead of {size_bytes}"
        )
    return b"".join(parts)
