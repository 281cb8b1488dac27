"""Blocks of files: fallocate(2)."""

from __future__ import annotations

import ctypes
import errno
import os

from lamina.linux.syscalls import LIBC

# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

_FULL = (errno.ENOSPC, errno.EDQUOT)


def allocate(fd: int, size_bytes: int) -> bool:
    """Make a file as long as that, with all of its blocks; False if the file system cannot.

    Raises OSError if there is no room for them.
    """
    size = ctypes.c_longlong(size_bytes)
    if LIBC.fallocate(ctypes.c_int(fd), 0, ctypes.c_longlong(0), size) == 0:
        return True
    code = ctypes.get_errno()
    if code in _FULL:
        raise OSError(code, os.strerror(code))
    return False


def punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    """Make a range of a file a hole.  Raises OSError."""
    mode = ctypes.c_int(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)
    arguments = ctypes.c_longlong(offset), ctypes.c_longlong(size_bytes)
    if LIBC.fallocate(ctypes.c_int(fd), mode, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
