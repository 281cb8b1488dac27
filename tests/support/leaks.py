"""What a test run must not leave behind: mounts and processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

RUN_VARIABLE = "LAMINA_TEST_RUN"
"""Set to the id of the pytest process; every process started by a test inherits it."""


RESOURCE_TRACKER = "from multiprocessing.resource_tracker import main"
"""A helper of Python's multiprocessing, which ends with the pytest process."""


def mounts_below(folder: Path) -> list[str]:
    """Mount points inside a folder, deepest first."""
    prefix = f"{folder}/"
    points = [
        _unescape(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return sorted((p for p in points if p.startswith(prefix)), reverse=True)


def processes_of_run(run: str) -> list[tuple[int, str]]:
    """(pid, command line) of live processes that carry the id of this run, this process and its
    parents left out.
    """
    wanted = f"{RUN_VARIABLE}={run}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                command = (
                    (entry / "cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                    .strip()
                )
            except OSError:
                continue
            if wanted in environment and RESOURCE_TRACKER not in command:
                found.append((int(entry.name), command))
    return found


def end_processes(run: str, grace_s: float) -> list[tuple[int, str]]:
    """Wait a little for the processes of a run to end, kill what is left, and return those."""
    deadline_s = time.monotonic() + grace_s
    while (left := processes_of_run(run)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    return left


def _unescape(field: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field
