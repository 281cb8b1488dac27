"""When memory that was freed goes back to the system.

Where a C library has no such call nothing is lost but some memory, so that nobody has to know.
"""

from __future__ import annotations

import sys


def keep_freed_memory() -> None:
    """Let this process reuse the memory of buffers, and give large ones back at once."""
    if sys.platform == "linux":
        from lamina.linux import heap

        heap.keep_freed_memory()


def give_freed_memory_back() -> None:
    """Give back what is free, after much was freed."""
    if sys.platform == "linux":
        from lamina.linux import heap

        heap.give_freed_memory_back()
