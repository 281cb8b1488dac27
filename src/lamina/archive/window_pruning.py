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

import ctypes
from array import array

from lamina.archive import deflate_library as libz
from lamina.archive.access_points import WINDOW_BYTES

LOOKAHEAD_BYTES = 40 << 10
"""Compressed bytes after a point that surely yield 32 KiB, unless the stream ends."""

MIN_MATCH_BYTES = 3
"""Shortest that deflate refers to (RFC 1951 §3.2.5)."""

# The byte at 255 * page + low has the names low + 1 and page + 1, or SECOND where they would be
# equal: so whatever comes from the window is different in both outputs, and literals are not.  No
# name is zero, so what is zeroed can be dropped by its value.
PAGE_BYTES = 255
PAGES = -(-WINDOW_BYTES // PAGE_BYTES)
SECOND = 255

_LOW = (bytes(range(1, PAGE_BYTES + 1)) * PAGES)[:WINDOW_BYTES]
_HIGH = b"".join(
    bytes(SECOND if low == page else page for low in range(1, PAGE_BYTES + 1))
    for page in range(1, PAGES + 1)
)[:WINDOW_BYTES]
_FROM_WINDOW = b"\0" + b"\xff" * 255


class WindowPruner:
    """Tells the bytes of windows that are needed; one inflate serves all of them.  ``close`` frees
    it.
    """

    def __init__(self) -> None:
        self._stream = libz.new_inflate(libz.RAW_WINDOW_BITS)
        self._reference = ctypes.byref(self._stream)
        self._output = bytearray(WINDOW_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._output))

    def close(self) -> None:
        """Free the state of the inflate; may be called again."""
        libz.end_inflate(self._stream)

    def pruned(self, window: bytes, following: bytes, bits: int, byte: int) -> bytes:
        """Return the window with zeros where the stream after it does not refer to it.

        ``following`` are the compressed bytes after the point, :data:`LOOKAHEAD_BYTES` or all there
        are.  What cannot be told keeps the window whole.
        """
        samples = []
        for pattern in (_LOW, _HIGH):
            length = self._inflate(pattern, len(window), following, (bits, byte))
            samples.append(self._output[:length:MIN_MATCH_BYTES])
        low, high = samples
        if not low or len(low) != len(high):
            return window
        return _keep(window, _places(low, high))

    def _inflate(
        self, pattern: bytes, size_bytes: int, following: bytes, prime: tuple[int, int]
    ) -> int:
        """Return how much of the output is there with another window: all or, if it cannot be
        told, nothing.
        """
        library, stream = libz.load_library(), self._stream
        bits, byte = prime
        library.reset(self._reference)
        library.prime(self._reference, bits, byte >> (8 - bits))
        library.set_window(self._reference, _address(pattern), size_bytes)
        stream.next_in, stream.avail_in = _address(following), len(following)
        stream.next_out, stream.avail_out = self._address, WINDOW_BYTES
        code = library.inflate(self._reference, libz.Z_NO_FLUSH)
        length = WINDOW_BYTES - int(stream.avail_out)
        # What follows the end of a member has a window of its own.
        is_whole = length == WINDOW_BYTES or code == libz.Z_STREAM_END
        if is_whole or (code in (libz.Z_OK, libz.Z_BUF_ERROR) and len(following) < LOOKAHEAD_BYTES):
            return length
        return 0


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _places(low: bytearray, high: bytearray) -> bytearray:
    """Return a byte for each byte of a window, 255 if one of the samples came from it."""
    length = len(low)
    lows, highs = int.from_bytes(low, "little"), int.from_bytes(high, "little")
    chosen = (lows ^ highs).to_bytes(length, "little").translate(_FROM_WINDOW)
    mask = int.from_bytes(chosen, "little")
    parts = [
        (names & mask).to_bytes(length, "little").translate(None, b"\0") for names in (lows, highs)
    ]
    places = bytearray(2 * len(parts[0]))
    places[0::2], places[1::2] = parts
    seen = bytearray(1 << 16)
    for place in array("H", bytes(places)):
        seen[place] = 255
    for page in range(1, PAGES + 1):
        seen[page << 8 | page] |= seen[SECOND << 8 | page]
    pages = [seen[page << 8 | 1 : (page + 1) << 8] for page in range(1, PAGES + 1)]
    return bytearray().join(pages)


def _keep(window: bytes, seen: bytearray) -> bytes:
    """Return the window with what was seen of it, and what may have been seen in part only."""
    size = len(window)
    seen[max(size - MIN_MATCH_BYTES, 0) : size] = b"\xff" * min(MIN_MATCH_BYTES, size)
    used = int.from_bytes(seen[:size], "little")
    used |= used << 8
    used |= used << 8
    kept = int.from_bytes(window, "little") & (used | used >> 16)
    return kept.to_bytes(size, "little")
