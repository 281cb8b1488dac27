"""Waiting for the end of mounts that are unmounted."""

from __future__ import annotations

import time
from typing import Final

from lamina.serve.mounts import list_mounts

LIMIT_S: Final = 60.0


def wait_for_no_mounts() -> None:
    """Wait until no image is mounted or served.

    One that is unmounted may go on to be served for a while: a program of another test, which has a
    mount namespace of its own, has a copy for as long as it runs.
    """
    end_s = time.monotonic() + LIMIT_S
    while mounts := list_mounts():
        assert time.monotonic() < end_s, mounts
        time.sleep(0.02)
