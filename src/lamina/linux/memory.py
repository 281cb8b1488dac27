"""Keeping secrets out of swap, of core dumps and of ``/proc/PID/environ``."""

from __future__ import annotations

import ctypes
import os

from lamina.linux.syscalls import LIBC, checked

# linux/prctl.h
PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Make this process's memory unreadable to other processes of the same user, and never dumped
    (``PR_SET_DUMPABLE`` 0; ``/proc/PID/mem`` and ptrace want CAP_SYS_PTRACE then), nor that of its
    children (``RLIMIT_CORE`` 0).

    It also gives ``/proc/PID`` to root, so it is for processes that hold keys only.  An exec undoes
    it.  Raises KernelError.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    checked(LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl", "cannot forbid core dumps")


def lock_memory(buffer: bytearray) -> bool:
    """Keep the pages of a buffer out of swap (``mlock``); False where the limit forbids it.

    The kernel does not count locks: two buffers on one page are unlocked together, so callers lock
    pages and leave them locked.  The buffer must not be resized afterwards.
    """
    if not buffer:
        return True
    window = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    address = ctypes.addressof(window)
    page = os.sysconf("SC_PAGESIZE")
    start = address - address % page
    size = ctypes.c_size_t(address + len(buffer) - start)
    return int(LIBC.mlock(ctypes.c_void_p(start), size)) == 0


def wipe_variable(name: str) -> None:
    """Overwrite the value of an environment variable where the kernel put it: removing a variable
    leaves its text in ``/proc/PID/environ``, which shows that memory (proc_pid_environ(5)).
    """
    getenv = LIBC.getenv
    getenv.restype = ctypes.c_void_p
    address = getenv(name.encode())
    if address:
        ctypes.memset(address, 0, len(ctypes.string_at(address)))
