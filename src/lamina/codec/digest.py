"""Chunk digests: BLAKE3 (unkeyed, 32 bytes) and SHA-256 (RAFS v6 §3.1)."""

from __future__ import annotations

import hashlib
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

DIGEST_SIZE = 32
PART_DIGESTS = 1 << 12
KEPT_BYTES = 1 << 10
"""Update of a digest for which both libraries keep the interpreter's lock: they give it up for
2 KiB.
"""
KEPT_MOST_BYTES = 8 * KEPT_BYTES


class Digester(IntEnum):
    """Digest algorithms with the numbers they have on disk (RAFS v6 §0)."""

    BLAKE3 = 0
    SHA256 = 1


def digest(kind: Digester, data: Buffer) -> bytes:
    """Return the 32-byte digest of *data*; releases the GIL for large buffers."""
    value: bytes = hasher(kind)(data).digest()
    return value


@cache
def hasher(kind: Digester) -> Callable[..., Any]:
    """Return what begins a digest, as :func:`hashlib.sha256` does: of the first data, if given."""
    if kind == Digester.SHA256:
        return hashlib.sha256
    from blake3 import blake3

    return blake3


def chosen_digests(digests: bytes | bytearray, numbers: Sequence[int], first: int = 0) -> bytearray:
    """Return some of many digests, numbered from *first* on; no more of them are in memory."""
    found, size = bytearray(), DIGEST_SIZE
    for part in range(0, len(numbers), PART_DIGESTS):
        starts = [(first + number) * size for number in numbers[part : part + PART_DIGESTS]]
        found += b"".join([digests[start : start + size] for start in starts])
    return found


@cache
def keeping_hasher(kind: Digester) -> Callable[..., Any]:
    """Return what :func:`hasher` does, for one thread of several that work: to digest a small
    file keeps the interpreter's lock.

    Given up for some microseconds it goes to whoever waits, and two switches between threads cost
    more than a few updates do.
    """
    begin = hasher(kind)

    def start(data: bytes | memoryview = b"") -> Any:
        size = len(data)
        if not 2 * KEPT_BYTES <= size <= KEPT_MOST_BYTES:
            return begin(data)
        state = begin(data[:KEPT_BYTES])
        for at in range(KEPT_BYTES, size, KEPT_BYTES):
            state.update(data[at : at + KEPT_BYTES])
        return state

    return start
