"""The log of a container in CRI's form, a line for each line of output::

    2016-10-06T00:17:09.669794202Z stdout F the line
    TIME                           STREAM TAG CONTENT

The tag is ``F``, or ``P`` if the line goes on in the next entry of the stream (Kubernetes,
design-proposals/node/kubelet-cri-logging.md).
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final, NamedTuple

LONGEST_BYTES: Final = 16 << 10
"""Of one entry, as containerd has it."""

_TIME: Final = r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(\.\d{1,9})?)?(Z|[+-].+)?"


class LogEntry(NamedTuple):
    """One entry; ``time_ns`` is since 1970."""

    time_ns: int
    stream: str
    is_whole: bool
    content: bytes


class LogStream:
    """One stream of a container on its way into the log: cut into lines."""

    def __init__(self, name: str, log_fd: int) -> None:
        self._name = name
        self._log_fd = log_fd
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take what the container wrote."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            while len(line) > LONGEST_BYTES:
                self._write(b"P", line[:LONGEST_BYTES])
                line = line[LONGEST_BYTES:]
            self._write(b"F", line)
        while len(self._rest) >= LONGEST_BYTES:
            self._write(b"P", self._rest[:LONGEST_BYTES])
            self._rest = self._rest[LONGEST_BYTES:]

    def end(self) -> None:
        """Write what has no end of line."""
        if self._rest:
            self._write(b"P", self._rest)
            self._rest = b""

    def _write(self, tag: bytes, content: bytes) -> None:
        head = f"{shown_time(time.time_ns())} {self._name} ".encode()
        # A full disk costs lines of the log, and not the container.
        with contextlib.suppress(OSError):
            os.write(self._log_fd, head + tag + b" " + content + b"\n")


def shown_time(time_ns: int) -> str:
    """Return a time as RFC 3339 has it, in nanoseconds and UTC."""
    seconds, fraction = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


def read_entry(line: bytes) -> LogEntry | None:
    """Return the entry of a line without its end; None for one that is none."""
    parts = line.split(b" ", 3)
    if len(parts) != 4:
        return None
    moment = read_time_ns(parts[0].decode("ascii", "replace"))
    stream, tag = parts[1].decode("ascii", "replace"), parts[2].split(b":")[0]
    if moment is None or stream not in ("stdout", "stderr") or tag not in (b"F", b"P"):
        return None
    return LogEntry(moment, stream, tag == b"F", parts[3])


def read_time_ns(text: str) -> int | None:
    """Return the time that RFC 3339 writes so, in nanoseconds since 1970; None if it is none."""
    import datetime as dt
    import re

    found = re.fullmatch(_TIME, text)
    if found is None:
        return None
    day, clock, fraction, zone = found.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{clock or '00:00'}{zone or 'Z'}")
    except ValueError:
        return None
    nanoseconds = int((fraction or ".0")[1:].ljust(9, "0"))
    return int(moment.timestamp()) * 10**9 + nanoseconds
