"""Inflate a part of a gzip stream from an access point.

A point may lie inside a byte, and Python's engines cannot be given bits.  So they are fed a few
*priming blocks* first: empty deflate blocks whose length in bits leaves just the room for the
bits of that byte.  Byte alignment is that of the original stream, as stored blocks need it.
Sources: RFC 1951 §3.2.3-3.2.7; RAFS v6 §7.2.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

RAW_WINDOW_BITS = -15
GZIP_WINDOW_BITS = 31
TRAILER_BYTES = 8
MEMBER_MAGIC = b"\x1f\x8b\x08"
PIECE_BYTES = 64 << 10

# An empty block with fixed codes: not final, kind 1, end of block 0000000 (10 bits).
FIXED_BLOCK = (0b010, 10)
# An empty block with its own codes, 91 bits: not final, kind 2, 257 literal codes, 2 distance
# codes, 18 code lengths (those of the symbols 18 and 1 are 1); then 138 and 118 zeros, length 1
# for the end of the block and for both distances; then the end of the block.
DYNAMIC_FIELDS = (
    (0, 1), (2, 2), (0, 5), (1, 5), (14, 4), *((0, 3),) * 2, (1, 3), *((0, 3),) * 14, (1, 3),
    (1, 1), (127, 7), (1, 1), (107, 7), (0, 1), (0, 1), (0, 1), (0, 1),
)  # fmt: skip


def engine() -> Any:
    """Return the fastest module here with the interface of ``zlib``."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


@cache
def priming_blocks(bits: int) -> tuple[int, int]:
    """Return (value, length in bits) of empty blocks after which *bits* bits fill a byte."""
    value = length = 0
    wanted = -bits % 8
    fields: list[tuple[int, int]] = []
    if wanted % 2:
        fields += DYNAMIC_FIELDS
    length = sum(size for _, size in fields)
    fields += [FIXED_BLOCK] * ((wanted - length) % 8 // 2)
    length = 0
    for field, size in fields:
        value |= field << length
        length += size
    return value, length


def prime(bits: int, byte: int) -> bytes:
    """Return the bytes to feed first, which end with the *bits* high bits of *byte*."""
    if not 0 <= bits <= 7 or not 0 <= byte <= 255:
        raise FormatError(f"an access point claims {bits} bits of the byte {byte}")
    if not bits:
        return b""
    value, length = priming_blocks(bits)
    return (value | byte >> (8 - bits) << length).to_bytes((length + bits) // 8, "little")


def inflate_span(
    data: Buffer, bits: int, byte: int, window: Buffer, size_bytes: int, *, module: Any = None
) -> bytes:
    """Return the first *size_bytes* that a stream yields from an access point on.

    *data* begins at the point's first whole byte and may end anywhere after what yields the last
    byte.  Members that follow are inflated as well; of those that end in *data* all but the first
    are checked against their CRC.  Never returns or holds more than *size_bytes*.

    Raises FormatError: the bytes are no deflate stream, or yield less.
    """
    plain = inflate_begin(data, bits, byte, window, size_bytes, module=module)
    if len(plain) != size_bytes:
        raise FormatError(
            f"a part of a gzip stream yields {len(plain)} bytes instead of {size_bytes}"
        )
    return plain


def inflate_begin(
    data: Buffer, bits: int, byte: int, window: Buffer, size_bytes: int, *, module: Any = None
) -> bytes:
    """Do as :func:`inflate_span`, but return less if *data* yields less."""
    module = module or engine()
    view = memoryview(data).cast("B")
    # nydus-image makes points at the end of a member, before its trailer.
    if view[TRAILER_BYTES : TRAILER_BYTES + len(MEMBER_MAGIC)] == MEMBER_MAGIC:
        member = _Span(module, module.decompressobj(GZIP_WINDOW_BITS), view[TRAILER_BYTES:], 0)
        with suppress(FormatError):
            return member.join(b"", size_bytes)
    window = bytes(window)
    raw = module.decompressobj(RAW_WINDOW_BITS, zdict=window) if window else None
    span = _Span(module, raw or module.decompressobj(RAW_WINDOW_BITS), view, TRAILER_BYTES)
    return span.join(prime(bits, byte), size_bytes)


class _Span:
    """One inflate over the members in ``data``, fed piece by piece.

    What a member leaves is copied, so small pieces bound what a thousand tiny members cost.
    """

    def __init__(self, module: Any, inflater: Any, data: memoryview, trailer_bytes: int) -> None:
        self._module = module
        self._inflater = inflater
        self._data = data
        self._position = 0
        self._trailer = trailer_bytes

    def join(self, feed: bytes, size_bytes: int) -> bytes:
        try:
            parts = list(self.inflate(feed, size_bytes))
        except (self._module.error, ValueError) as error:
            raise FormatError(f"the gzip stream is damaged: {error}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def inflate(self, feed: bytes, left: int) -> Iterator[bytes]:
        while left:
            if not feed:
                feed = self._next_piece()
                if not feed:
                    return
            plain = self._inflater.decompress(feed, left)
            left -= len(plain)
            if plain:
                yield plain
            if self._inflater.eof:
                feed = self._next_member(self._inflater.unused_data)
            else:
                feed = self._inflater.unconsumed_tail

    def _next_piece(self) -> bytes:
        piece = bytes(self._data[self._position : self._position + PIECE_BYTES])
        self._position += len(piece)
        return piece

    def _next_member(self, feed: bytes) -> bytes:
        while len(feed) < self._trailer:
            more = self._next_piece()
            if not more:
                return b""
            feed += more
        feed = feed[self._trailer :].lstrip(b"\0")
        self._trailer = 0
        while not feed:
            feed = self._next_piece()
            if not feed:
                return b""
            feed = feed.lstrip(b"\0")
        self._inflater = self._module.decompressobj(GZIP_WINDOW_BITS)
        return feed
