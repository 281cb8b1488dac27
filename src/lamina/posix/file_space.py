"""Blocks of files: taken in advance, given back, and forgotten by the page cache.

Where a system has no such call nothing is lost but the space, so that nobody has to know.
"""

from __future__ import annotations

import os
import sys


def reserve(fd: int, size_bytes: int) -> None:
    """Make an empty file as long as it will be, with its blocks where that is possible.

    Raises OSError if there is no room for them.
    """
    if sys.platform == "linux":
        from lamina.linux.file_space import allocate

        if allocate(fd, size_bytes):
            return
    # Not every file system can take space in advance.
    os.truncate(fd, size_bytes)


def forget_pages(fd: int, offset: int, size_bytes: int) -> None:
    """Tell the kernel that a range of a file will not be read again (posix_fadvise(2))."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size_bytes, os.POSIX_FADV_DONTNEED)
