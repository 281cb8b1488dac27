"""The open descriptors of this process, to see whether some are left."""

from __future__ import annotations

import contextlib
import os


def open_descriptors() -> set[tuple[str, str]]:
    """Return number and target of each; what is left of something is in no set from before it.

    Others may be gone meanwhile: servers of earlier tests have threads that close late.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # Not that of the listing itself.
        with contextlib.suppress(FileNotFoundError):
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found
