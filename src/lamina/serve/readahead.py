"""How far the kernel reads ahead in a mounted image.

What is read ahead of an incomplete blob is fetched, so too much costs time on a slow link.  Linux
reads ahead 128 KiB.  Measured for the start of a program over 24 Mbit/s, chunks of 128 KiB, by
readahead: 128 KiB 4.39 s and 11.9 MB, 64 KiB 4.20 s and 11.2 MB, 32 KiB 4.15 s and 10.9 MB, 16 KiB
4.31 s.  Half of it also helps a distant registry, which a quarter leaves with more round trips.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

LAZY_KIB: Final = 64
"""The most while some blob is incomplete."""

_FILE: Final = "read_ahead_kb"
_LONGEST_TEXT: Final = 32


def lazy_readahead_kib(current_kib: int, most_kib: int = LAZY_KIB) -> int:
    """Return how far to read ahead of incomplete blobs, in KiB: never further than now."""
    return min(current_kib, most_kib)


def shorten_readahead(devices: Iterable[str], most_kib: int = LAZY_KIB) -> None:
    """Bound the readahead of backing devices, given by their folders (``/sys/class/bdi/erofs-42``).

    With 0 each page is read when it is touched, and no other.

    The kernel takes the value for files opened from then on.  Where sysfs cannot be written, as in
    many containers, or the device has gone, nothing changes: a shorter readahead is only faster.
    """
    for device in devices:
        with contextlib.suppress(OSError):
            _shorten(Path(device) / _FILE, most_kib)


def _shorten(path: Path, most_kib: int) -> None:
    with path.open("rb") as file:
        text = file.read(_LONGEST_TEXT).strip()
    if not re.fullmatch(rb"[0-9]+", text):
        return
    current_kib = int(text)
    wanted_kib = lazy_readahead_kib(current_kib, most_kib)
    if wanted_kib != current_kib:
        path.write_text(f"{wanted_kib}\n")
