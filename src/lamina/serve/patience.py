"""Waiting for what does not come, instead of telling a guest of an error.

A guest remembers errors: its file system may give up, and a block of a hash tree that failed once
stays an error until the device is made anew.  A late answer costs it nothing.  So while a failure
may pass, the read is tried again; only bytes that are wrong, and what no time cures, are errors.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import Final, Protocol

from lamina.errors import Error, FetchError, StoreError

LOG: Final = logging.getLogger("lamina")

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0


class Readable(Protocol):
    """What is read."""

    def read_into(self, offset: int, buffer: memoryview, /) -> int:
        """Fill *buffer* from *offset* on."""


def is_passing(error: Error) -> bool:
    """Return whether time may cure it: a source that does not answer, or a disk that is full."""
    if isinstance(error, FetchError):
        return error.transient
    return isinstance(error, StoreError) and error.errno == errno.ENOSPC


def read_patiently(
    disk: Readable,
    offset: int,
    buffer: memoryview,
    ended: threading.Event,
    give_up_s: float | None = None,
) -> int:
    """Fill *buffer* as :meth:`Readable.read_into` does, however long that takes.

    Raises what it raises if that will not pass, or when *ended* is set, or *give_up_s* are over.
    """
    begun = time.monotonic()
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return disk.read_into(offset, buffer)
        except Error as error:
            waited_s = time.monotonic() - begun
            if not is_passing(error) or (give_up_s is not None and waited_s >= give_up_s):
                raise
            LOG.info("a disk waits since %.0f s for bytes at %d: %s", waited_s, offset, error)
            wait_s = max(pause_s, getattr(error, "retry_after_s", 0.0))
            if give_up_s is not None:
                # A guest is not kept for longer, however long a registry wants to be left alone.
                wait_s = min(wait_s, give_up_s - waited_s)
            if ended.wait(wait_s):
                raise
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
