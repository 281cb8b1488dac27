"""The heap of the C library (glibc, mallopt(3)): when freed memory goes back to the kernel."""

from __future__ import annotations

from lamina.linux.syscalls import LIBC

# malloc.h
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

TRIM_THRESHOLD_BYTES = 512 << 20
TOP_PAD_BYTES = 16 << 20
MMAP_THRESHOLD_BYTES = 4 << 20
"""Larger than the buffers that come and go; what grows beyond it moves without a copy, and leaves
no hole in the heap.
"""


def keep_freed_memory() -> bool:
    """Let this process reuse the freed memory of buffers below 4 MiB, up to 512 MiB of it; return
    whether its C library can do that.

    By default a buffer of a MiB goes back to the kernel when it is freed, and each page of the next
    one costs a fault: a tenth of the CPU time of a process that handles one buffer after the other.
    """
    mallopt = getattr(LIBC, "mallopt", None)
    if mallopt is None:
        return False
    wanted = {
        M_TRIM_THRESHOLD: TRIM_THRESHOLD_BYTES,
        M_TOP_PAD: TOP_PAD_BYTES,
        M_MMAP_THRESHOLD: MMAP_THRESHOLD_BYTES,
    }
    accepted = [mallopt(option, value) for option, value in wanted.items()]
    return all(accepted)


def give_freed_memory_back() -> None:
    """Give the kernel what is free in the heap, after much was freed."""
    trim = getattr(LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)
