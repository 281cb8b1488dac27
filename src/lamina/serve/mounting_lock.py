"""Who may mount now: one process at a time, and on a folder, or of what shares a superblock, one
until its mount is recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from typing import Final

from lamina.errors import KernelError
from lamina.linux.fuse_device import abort_connection
from lamina.linux.process import start_time_ticks
from lamina.serve.mount_records import mountpoint_key
from lamina.serve.runtime_folder import state_directory

MOUNTING_DEADLINE_S: Final = 20.0
"""How long a mount may take others' turn: it asks no registry, so it takes milliseconds."""

_LOCK_POLL_S: Final = 0.005
# struct flock of 64-bit Linux: l_type s16 | l_whence s16 | pad | l_start s64 | l_len s64 |
# l_pid s32 (0 for these locks) | pad
_FLOCK: Final = struct.Struct("@hhqqi4x")
_AFTER_ABORT_S: Final = 5.0


class MountingLock:
    """Held by the process that mounts; see :func:`mounting_lock`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def note_connection(self, device_number: int) -> None:
        """Tell others which FUSE connection (``st_dev``) to abort if this mount never ends."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d %d" % (os.getpid(), device_number), 0)


@contextlib.contextmanager
def mounting_lock(deadline_s: float = MOUNTING_DEADLINE_S) -> Iterator[MountingLock]:
    """Let one process mount at a time, so that each can tell its superblock from the others'.

    Who waits longer than ``deadline_s`` aborts the FUSE connection that the other process's mount
    waits for, and raises KernelError if that does not help.
    """
    path = state_directory() / "mounting.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(fd, deadline_s):
            owner = _abort_owner(fd)
            if not try_lock(fd, _AFTER_ABORT_S):
                raise KernelError(
                    f"another mount{owner} has not come to an end for {deadline_s:.0f} s",
                    hint=f"end that process; the lock is {path}",
                )
        os.ftruncate(fd, 0)
        yield MountingLock(fd)
    finally:
        os.close(fd)


def try_lock(fd: int, deadline_s: float = 0.0) -> bool:
    """Take the lock of an open file (flock), or return False if others have it all the while."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL_S)
        else:
            return True


def _abort_owner(fd: int) -> str:
    """End the FUSE connection of who has the lock, and return who it is, in words."""
    words = os.pread(fd, 64, 0).split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return ""
    pid, device_number = map(int, words)
    if os.geteuid() == 0 and start_time_ticks(pid) is not None:
        abort_connection(device_number)
    return f" (process {pid})"


@contextlib.contextmanager
def claimed(name: str) -> Iterator[None]:
    """Let one process at a time mount on a folder, which is an absolute path, from the look whether
    it is free until its record is written; or what may share a superblock, which is a key of
    :mod:`lamina.serve.sharing`, from the look for one.  Others wait.

    The lock of each is one byte of a file, so that no files are left behind.  Threads of one
    process exclude each other too: it is of one opening of the file, which no other ends.
    """
    fd = os.open(
        state_directory() / "mountpoints.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        start = int(mountpoint_key(name)[:15], 16)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
        yield
    finally:
        os.close(fd)
