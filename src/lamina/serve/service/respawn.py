"""How soon a process that has ended is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final

SHORT_LIFE_S: Final = 0.05
"""A process that is killed sooner may have died of its work."""
PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
"""Readers wait meanwhile; but what fails at once, again and again, must not take a whole CPU."""
_END_S: Final = 1.0
LONG_LIFE_S: Final = 30.0
"""One that lived so long did not fail for the reason of the one before it."""


class Respawn:
    """The lives of the processes of one role.

    One that was killed is replaced at once: that is what holder and supervisor are for.  The pauses
    before one that failed by itself is replaced grow.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._began = time.monotonic()

    def begin(self) -> None:
        """A process has been started."""
        self._began = time.monotonic()

    def pause_s(self, status: int | None) -> float:
        """Return how long to wait before the next begins.  ``status`` is that of waitpid(2), None
        if it is not known.
        """
        lived_s = time.monotonic() - self._began
        if status is None or _was_killed(status):
            return PAUSE_S if lived_s < SHORT_LIFE_S else 0.0
        self._failures = 1 if lived_s > LONG_LIFE_S else self._failures + 1
        return float(min(PAUSE_S * 2.0 ** min(self._failures, 32), LONGEST_PAUSE_S))


def _was_killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM)


def reap(pid: int) -> int | None:
    """Return the status of ``pid``, which is coming to its end, None if it is no child of this
    process; collect all other children that have ended.
    """
    status = _status(pid)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return status


def _status(pid: int) -> int | None:
    # Its descriptors are closed a moment before it can be waited for.
    end = time.monotonic() + _END_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.001)
    return None
