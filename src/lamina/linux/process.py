"""Process control: parent-death signals, names, namespaces, OOM score, file limit, pidfds."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from lamina.errors import KernelError
from lamina.linux.syscalls import LIBC, checked

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

FEWEST_FILES = 64
"""Of one mount of a small image: about 40 at once, in the process that serves."""
USUAL_FILES = 1024
LEAST_ADDRESS_SPACE_BYTES = 1 << 30
"""The stacks of 40 threads of 8 MiB each, the heaps that the C library gives them, caches."""

OOM_SCORE_ADJ_MIN = -1000
"""The process that the OOM killer never picks (linux/oom.h)."""


def set_parent_death_signal(number: int = signal.SIGKILL) -> None:
    """Ask for a signal when the thread that created this process ends (``PR_SET_PDEATHSIG``).

    Race: the parent may have died before the call; compare ``os.getppid()`` with the value from
    before the fork. Note that it is the parent *thread* that counts.
    """
    checked(LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl", "cannot ask for a death signal")


def become_subreaper() -> None:
    """Have processes below this one become its children when their parents end
    (``PR_SET_CHILD_SUBREAPER``); a fork of it is none until it asks itself.
    """
    checked(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl", "cannot adopt processes")


def set_name(name: str) -> None:
    """Set this thread's name as ``ps`` shows it; the kernel keeps 15 bytes."""
    checked(
        LIBC.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0),
        "prctl",
        "cannot set the process name",
    )


def set_command_line(text: str) -> None:
    """Have ``ps`` show a text, cut at the end, in the place of this process's arguments: those may
    have secrets in them, and anybody can read them for as long as the process runs.
    """
    with open("/proc/self/stat", "rb") as file:
        # proc(5): arg_start is field 48, arg_end 49; the second has a name with spaces in it.
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if end > start:
        # What the kernel shows ends with a NUL byte, or it would show the environment too.
        data = os.fsencode(text)[: end - start - 1]
        ctypes.memmove(start, data.ljust(end - start, b"\0"), end - start)


def leave_namespaces(kinds: int) -> None:
    """Move this process into new namespaces of the given ``CLONE_NEW*`` kinds; needs
    CAP_SYS_ADMIN.
    """
    checked(LIBC.unshare(kinds), "unshare", f"cannot create namespaces {kinds:#x}")


def set_oom_score(adjustment: int) -> bool:
    """Set ``/proc/self/oom_score_adj``; lowering it needs CAP_SYS_RESOURCE.  Return whether the
    kernel agreed.
    """
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(adjustment))
    except OSError:
        return False
    return True


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one and return it.

    Raises KernelError if a mount cannot be served within it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < FEWEST_FILES:
        raise KernelError(
            f"this process may have {hard} files open, and a mount needs {FEWEST_FILES}",
            hint=f"raise the limit of open files (ulimit -n {USUAL_FILES})",
        )
    return hard


def require_address_space() -> None:
    """Raise KernelError if this process may not map what a server with its threads needs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE_BYTES:
        raise KernelError(
            f"this process may map {limit >> 20} MiB, and a mount needs"
            f" {LEAST_ADDRESS_SPACE_BYTES >> 20} MiB of address space, little of which is memory",
            hint="raise the limit of address space (ulimit -v unlimited)",
        )


def start_time_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since boot, or None if it is gone.

    This is field 22 of ``/proc/PID/stat`` (proc(5)).

    Together with the pid this names one process for the whole uptime of the machine.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if len(fields) > 19 and fields[0] != b"Z" else None
