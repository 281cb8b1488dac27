"""Which bytes of a window a deflate stream refers to; the others may as well be zero.

Deflate refers back by at most 32 KiB, so whatever the stream takes from the window it takes for
its next 32 KiB of output.  These are inflated twice with windows that are not the real one: of a
byte that comes from the window they tell the low and the high half of its position.

No match is shorter than three bytes, so every third byte of the output is looked at, and the two
neighbours on each side of what it comes from are kept as well.  Only a match that leaves the
window, or the 32 KiB, can be seen in fewer bytes: it begins in the last two of the window.  Nothing
is parsed here, and nothing can go wrong but that bytes are kept in vain.
"""

from __future__ import annotations

from array import array
from functools import cache
from itertools import compress
from typing import Any

from lamina.archive.access_points import WINDOW_BYTES
from lamina.codec.deflate_span import engine, inflate_begin
from lamina.errors import FormatError

LOOKAHEAD_BYTES = 40 << 10
"""Compressed bytes after a point that surely yield 32 KiB, unless the stream ends."""

MIN_MATCH_BYTES = 3
"""Shortest that deflate refers to (RFC 1951 §3.2.5)."""

# The byte at 256 * page + low has the names low and page, or page + 128 where they would be equal:
# so whatever comes from the window is different in both outputs, and literals are not.
_SWAPPED = range(0, WINDOW_BYTES, 257)
_LOW = bytes(range(256)) * (WINDOW_BYTES // 256)
_HIGH = b"".join(
    bytes(page + 128 * (low == page) for low in range(256)) for page in range(WINDOW_BYTES // 256)
)
_FROM_WINDOW = b"\0" + bytes([1]) * 255


@cache
def _engine() -> Any:
    """Return zlib-ng if it is here: it starts in half of the time of the others."""
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return engine()
    return zlib_ng


def sparse_window(window: bytes, following: bytes, bits: int, byte: int) -> bytes:
    """Return the window with zeros where the stream after it does not refer to it.

    ``following`` are the compressed bytes after the point, :data:`LOOKAHEAD_BYTES` or all there
    are.  What cannot be told keeps the window whole.
    """
    size = len(window)
    outputs = []
    for pattern in (_LOW, _HIGH):
        try:
            begin = pattern[:size]
            plain = inflate_begin(following, bits, byte, begin, WINDOW_BYTES, module=_engine())
        except FormatError:
            return window
        outputs.append(plain)
    if len(outputs[0]) < WINDOW_BYTES and len(following) >= LOOKAHEAD_BYTES:
        return window
    low, high = (plain[::MIN_MATCH_BYTES] for plain in outputs)
    length = len(low)
    if not length or len(high) != length:
        return window
    differ = int.from_bytes(low, "little") ^ int.from_bytes(high, "little")
    chosen = differ.to_bytes(length, "little").translate(_FROM_WINDOW)
    places = bytearray(2 * length)
    places[0::2], places[1::2] = low, high
    seen = bytearray(2 * WINDOW_BYTES)
    for place in compress(array("H", bytes(places)), chosen):
        seen[place] = 255
    for place in _SWAPPED:
        seen[place] |= seen[place + WINDOW_BYTES]
    seen[max(size - MIN_MATCH_BYTES, 0) : size] = b"\xff" * min(MIN_MATCH_BYTES, size)
    used = int.from_bytes(seen[:size], "little")
    used |= used << 8
    used |= used << 8
    kept = int.from_bytes(window, "little") & (used | used >> 16)
    return kept.to_bytes(size, "little")
