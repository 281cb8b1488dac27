"""What a folder takes on the disk, while others write to it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def disk_usage(root: Path) -> int:
    """Bytes in blocks of all files below a folder, or less while others write there: never one
    file before it was evicted together with another one that has grown since.
    """
    before, after = _sizes(root), _sizes(root)
    return sum(min(size, after.get(number, 0)) for number, size in before.items())


def _sizes(root: Path) -> dict[tuple[int, int], int]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(os.path.join(folder, name))
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
