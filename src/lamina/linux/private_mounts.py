"""A mount namespace of one's own: what is mounted in it nobody else sees, and it goes when its
last process does.
"""

from __future__ import annotations

import ctypes

from lamina.linux.mount import MS_SLAVE
from lamina.linux.process import CLONE_NEWNS, leave_namespaces
from lamina.linux.syscalls import LIBC, checked

# sys/mount.h
MS_REC = 0x4000


def enter_private_mounts() -> None:
    """Move this process into a copy of its mount namespace.

    Mounts and unmounts outside still arrive, its own do not get out.  Needs CAP_SYS_ADMIN; the
    process must have one thread for the change to hold for all of it (unshare(2) is per thread).
    """
    leave_namespaces(CLONE_NEWNS)
    result = LIBC.mount(None, ctypes.c_char_p(b"/"), None, ctypes.c_ulong(MS_REC | MS_SLAVE), None)
    checked(result, "mount", "cannot keep mounts private")
