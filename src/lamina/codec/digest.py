"""Chunk digests: BLAKE3 (unkeyed, 32 bytes) and SHA-256 (RAFS v6 §3.1)."""

from __future__ import annotations

import hashlib
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

DIGEST_SIZE = 32


class Digester(IntEnum):
    """Digest algorithms with the numbers they have on disk (RAFS v6 §0)."""

    BLAKE3 = 0
    SHA256 = 1


def digest(kind: Digester, data: Buffer) -> bytes:
    """Return the 32-byte digest of ``data``; releases the GIL for large buffers."""
    value: bytes = hasher(kind)(data).digest()
    return value


@cache
def hasher(kind: Digester) -> Callable[..., Any]:
    """Return what begins a digest, as :func:`hashlib.sha256` does: of the first data, if given."""
    if kind == Digester.SHA256:
        return hashlib.sha256
    from blake3 import blake3

    return blake3
