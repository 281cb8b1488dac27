"""Peer tools (nydusd, crane, ...) as ``make peers`` leaves them; never part of the project."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.cache import cache_folder


def find_peer(name: str) -> Path | None:
    """Path of a peer program (``crane``, ``nydus-2.2/nydusd``), or None."""
    path = cache_folder("peers") / name
    return path if os.access(path, os.X_OK) else None
