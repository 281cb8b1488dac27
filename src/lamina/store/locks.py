"""Locks on one cache blob, between threads, openings and processes.

They are open-file-description locks (fcntl(2), ``F_OFD_SETLK``) on single bytes of the readiness
map's file: they belong to one opening of the file, so two openings in one process exclude each
other too, a fork shares them, and they end with the last descriptor whatever kills the process.

Only Linux has them.  Elsewhere it is as if somebody else always had everything: nothing is evicted
or removed then, and nobody can be let down by a lock that does not hold.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from enum import IntEnum
from typing import Final

# struct flock of 64-bit Linux: l_type s16 | l_whence s16 | pad | l_start s64 | l_len s64 |
# l_pid s32 (0 for these locks) | pad
_FLOCK: Final = struct.Struct("@hhqqi4x")
_BUSY: Final = (errno.EAGAIN, errno.EACCES)


class Lock(IntEnum):
    """What a byte of the file stands for."""

    OPEN = 0
    """Shared by every opening of the blob: who has it exclusively may remove the files."""
    WRITE = 1
    """Shared while data is written and marked, exclusive while it is evicted."""
    KERNEL = 2
    """Shared while a kernel may read the cache file without asking: nothing is evicted then."""


def lock_shared(fd: int, lock: Lock) -> None:
    """Take *lock* together with others; waits for who has it exclusively."""
    if sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _flock(fcntl.F_RDLCK, lock))


def lock_exclusive(fd: int, lock: Lock, *, wait: bool = True) -> bool:
    """Take *lock* alone; without *wait* return False if somebody has it."""
    if sys.platform != "linux":
        return False
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, command, _flock(fcntl.F_WRLCK, lock))
    except OSError as error:
        if error.errno in _BUSY and not wait:
            return False
        raise
    return True


def unlock(fd: int, lock: Lock) -> None:
    """Give *lock* back."""
    if sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, lock))


def is_locked(fd: int, lock: Lock) -> bool:
    """Tell whether any other opening has *lock*, shared or not."""
    if sys.platform != "linux":
        return True
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, lock))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _flock(kind: int, lock: Lock) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, lock, 1, 0)
