"""The signals by which servers of the command line are told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def held_end_signals() -> Iterator[Callable[[], None]]:
    """Hold them back until the block ends; what is yielded waits for one, and holds back no more.

    A server enters this before anybody knows its address: none of them must find it without a
    waiter.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)

    def wait() -> None:
        signal.sigwait(END_SIGNALS)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        yield wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
