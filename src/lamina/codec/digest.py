"""Chunk digests: BLAKE3 (unkeyed, 32 bytes) and SHA-256 (RAFS v6 §3.1)."""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

DIGEST_SIZE = 32


class Digester(IntEnum):
    """Digest algorithms with the numbers they have on disk (RAFS v6 §0)."""

    BLAKE3 = 0
    SHA256 = 1


def digest(kind: Digester, data: Buffer) -> bytes:
    """Return the 32-byte digest of ``data``; releases the GIL for large buffers."""
    if kind == Digester.SHA256:
        return hashlib.sha256(data).digest()
    from blake3 import blake3

    value: bytes = blake3(data).digest()
    return value
