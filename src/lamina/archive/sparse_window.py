"""Which bytes of a window a deflate stream refers to; the others may as well be zero.

Deflate refers back by at most 32 KiB, so whatever the stream takes from the window it takes for
its next 32 KiB of output.  These are inflated three times with windows that are not the real one:
of a byte that comes from the window they tell the low and the high half of its position, and a
third with the low halves inverted tells such bytes from literals.  No match is shorter than three
bytes, so every third byte of the output is looked at, and the two neighbours on each side of what
it comes from are kept as well.  Only a match that leaves the window, or the 32 KiB, can be seen in
fewer bytes: it begins in the last two of the window.  Nothing is parsed here, and nothing can go
wrong but that bytes are kept in vain.
"""

from __future__ import annotations

from array import array
from itertools import compress

from lamina.archive.access_points import WINDOW_BYTES
from lamina.codec.deflate_span import inflate_begin
from lamina.errors import FormatError

LOOKAHEAD_BYTES = 40 << 10
"""Compressed bytes after a point that surely yield 32 KiB, unless the stream ends."""

MIN_MATCH_BYTES = 3
"""Shortest that deflate refers to (RFC 1951 §3.2.5)."""

_LOW = bytes(range(256)) * (WINDOW_BYTES // 256)
_HIGH = b"".join(bytes([number]) * 256 for number in range(WINDOW_BYTES // 256))
_INVERTED = bytes(byte ^ 255 for byte in _LOW)
_FROM_WINDOW = bytes(255) + b"\1"


def sparse_window(window: bytes, following: bytes, bits: int, byte: int) -> bytes:
    """Return the window with zeros where the stream after it does not refer to it.

    ``following`` are the compressed bytes after the point, :data:`LOOKAHEAD_BYTES` or all there
    are.  What cannot be told keeps the window whole.
    """
    size = len(window)
    outputs = []
    for pattern in (_LOW, _INVERTED, _HIGH):
        try:
            plain = inflate_begin(following, bits, byte, pattern[:size], WINDOW_BYTES)
        except FormatError:
            return window
        outputs.append(plain)
    if len(outputs[0]) < WINDOW_BYTES and len(following) >= LOOKAHEAD_BYTES:
        return window
    low, inverted, high = (plain[::MIN_MATCH_BYTES] for plain in outputs)
    length = len(low)
    if not length or len(inverted) != length or len(high) != length:
        return window
    differ = int.from_bytes(low, "little") ^ int.from_bytes(inverted, "little")
    chosen = differ.to_bytes(length, "little").translate(_FROM_WINDOW)
    places = bytearray(2 * length)
    places[0::2], places[1::2] = low, high
    seen = bytearray(size)
    for place in set(compress(array("H", bytes(places)), chosen)):
        if place < size:
            seen[place] = 255
    seen[-MIN_MATCH_BYTES:] = b"\xff" * min(MIN_MATCH_BYTES, size)
    used = int.from_bytes(seen, "little")
    used |= used << 8 | used << 16 | used >> 8 | used >> 16
    kept = int.from_bytes(window, "little") & used
    return kept.to_bytes(size, "little")
