"""Little-endian 64-bit words as numbers, without a copy where the machine has that order."""

from __future__ import annotations

import sys
from array import array


def as_u64s(view: memoryview) -> memoryview | array[int]:
    """Return the words of bytes, whose count must be a multiple of 8."""
    if sys.byteorder == "little":
        return view.cast("Q")
    words = array("Q", bytes(view))
    words.byteswap()
    return words


def as_bytes(words: memoryview | array[int]) -> bytes:
    """Return the bytes of words."""
    if sys.byteorder == "little":
        return words.tobytes()
    swapped = array("Q", words)
    swapped.byteswap()
    return swapped.tobytes()
