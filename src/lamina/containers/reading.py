"""Reading the log of a container, to its end or as it grows."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from lamina.containers.claim import ClaimSeen
from lamina.containers.log_format import LogEntry, read_entry
from lamina.containers.places import Container
from lamina.containers.record import LOG_FILE
from lamina.errors import NotFoundError

_LOOK_S: Final = 0.05
_BLOCK_BYTES: Final = 64 << 10


def read_log(
    container: Container, *, follow: bool = False, tail: int | None = None
) -> Iterator[LogEntry]:
    """Yield the entries of a container's log: the last *tail* of them, and with *follow* those that
    come until it ends.

    Raises NotFoundError for a container that has none, because it ran in the foreground.
    """
    try:
        fd = os.open(os.path.join(container.folder, LOG_FILE), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(
            f"the container {container.name!r} has no log",
            hint="those of `lamina run -d` have one; the output of others is that of lamina",
        ) from None
    claim = ClaimSeen.of(container.bundle) if follow and container.is_live else None
    try:
        lines = _lines(fd, claim)
        if tail is not None:
            there = _lines(fd, None)
            yield from filter(None, map(read_entry, deque(there, tail)))
        yield from filter(None, map(read_entry, lines))
    finally:
        os.close(fd)
        if claim is not None:
            claim.close()


def _lines(fd: int, claim: ClaimSeen | None) -> Iterator[bytes]:
    """Yield the lines from where the file stands, to its end, or with *claim* until nobody holds
    that.  Part of a line is left for whoever reads next.
    """
    rest = b""
    while True:
        # Asked first: what is written before the end is there when it has come.
        held = claim is not None and claim.is_held()
        data = os.read(fd, _BLOCK_BYTES)
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if not data and not held:
            os.lseek(fd, -len(rest), os.SEEK_CUR)
            return
        if not data:
            time.sleep(_LOOK_S)
