"""A process that overwrites memory when it frees it.

Python's strings and the buffers of gRPC cannot be overwritten by who made them.  glibc does so with
everything that is freed if it is told to at the start (``glibc.malloc.perturb``; the caches of
threads are passed over, so there are none), and with ``PYTHONMALLOC`` Python frees by it.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_TUNABLES: Final = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
_GLIBC: Final = "GLIBC_TUNABLES"
_PYTHON: Final = "PYTHONMALLOC"


def free_by_overwriting() -> None:
    """Begin this process anew, as one that does; return if it is.  It must not have begun anything.

    Children that it starts later are as ever.
    """
    known = os.environ.get(_GLIBC, "")
    if known.endswith(_TUNABLES):
        rest = known.removesuffix(_TUNABLES).rstrip(":")
        if rest:
            os.environ[_GLIBC] = rest
        else:
            del os.environ[_GLIBC]
        del os.environ[_PYTHON]
        return
    os.environ[_GLIBC] = f"{known}:{_TUNABLES}" if known else _TUNABLES
    os.environ[_PYTHON] = "malloc"
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program
