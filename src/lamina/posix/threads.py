"""Starting threads where there may be none to be had."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lamina.errors import KernelError


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread.  Raises KernelError if the limits of this user allow no more."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        # What Python makes of EAGAIN of clone(2).
        raise KernelError(
            "no more threads can be started",
            hint="raise the limits of processes (ulimit -u) and of address space (ulimit -v)",
        ) from error
    return thread
