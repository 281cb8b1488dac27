"""The cache outside the repository that test images and peer tools live in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``$LAMINA_CACHE/NAME``, by default below ``~/.cache/lamina-dev``; made if it is not there."""
    root = os.environ.get("LAMINA_CACHE") or str(Path.home() / ".cache" / "lamina-dev")
    folder = Path(root) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file: parallel test workers build a thing once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
