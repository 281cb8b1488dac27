"""Where a process listens that was told to choose its port: nobody else can take it before."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.support.waiting import LIMIT_S

_LISTEN: Final = "0A"
"""The state of a socket that listens, as ``/proc/PID/net/tcp`` has it."""


def listening_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until a process listens on TCP, and return the port.  Raises RuntimeError with what it
    has said if it ends instead.
    """
    end_s = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < end_s:
        if ports := _ports(process.pid):
            return min(ports)
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen: {log.read_text()[-2000:]}")


def _ports(pid: int) -> set[int]:
    own = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                own.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and f"socket:[{fields[9]}]" in own:
                    found.add(int(fields[1].rpartition(":")[2], 16))
    return found
