"""Records of the node store as bytes."""

from __future__ import annotations

import hashlib


def framed(content: bytes) -> bytes:
    """The file of a record with this content."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content
