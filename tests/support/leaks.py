"""What a test run must not leave behind: mounts and processes, and folders that these write to."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

RUN_VARIABLE = "LAMINA_TEST_RUN"
"""Set to the id of the pytest process; every process started by a test inherits it."""

TEST_VARIABLE = "LAMINA_TEST"
"""Set to what is one test's alone, and inherited likewise."""

END_S = 100.0
"""How long what a test has started may take to end: unmounted lazily, it is served for as long as a
program of another test, which has a mount namespace of its own, has a copy of the mount.
"""

RESOURCE_TRACKER = "from multiprocessing.resource_tracker import main"
"""A helper of Python's multiprocessing, which ends with the pytest process."""


def mounts_below(folder: Path) -> list[str]:
    """Mount points inside a folder, deepest first."""
    prefix = f"{folder}/"
    points = [
        _unescape(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return sorted((p for p in points if p.startswith(prefix)), reverse=True)


def processes() -> set[int]:
    """The ids of all processes of the machine."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def processes_of_run(run: str) -> list[tuple[int, str]]:
    """(pid, command line) of live processes that carry the id of this run, this one left out."""
    return list(_marked(processes(), RUN_VARIABLE, run))


@contextlib.contextmanager
def ended_processes(test: str) -> Iterator[None]:
    """Wait, at the end of the block, for all processes that have begun in it and carry the id of
    this test.  Kills those that do not end, and fails.
    """
    before = processes()
    yield
    left = _end(before, TEST_VARIABLE, test, END_S)
    assert not left, "still there after the test: " + "; ".join(
        f"process {pid}: {command[:200]}" for pid, command in left
    )


def end_processes(run: str, grace_s: float) -> list[tuple[int, str]]:
    """Wait a little for the processes of a run to end, kill what is left, and return those."""
    return _end(set(), RUN_VARIABLE, run, grace_s)


def remove_folder(folder: Path) -> None:
    """Remove a folder, anew for as long as somebody still writes to it, and fail then."""
    end_s = time.monotonic() + END_S
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.02)


def _end(before: set[int], variable: str, value: str, grace_s: float) -> list[tuple[int, str]]:
    deadline_s = time.monotonic() + grace_s
    while left := list(_marked(processes() - before, variable, value)):
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.02)
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def _marked(pids: Iterable[int], variable: str, value: str) -> Iterator[tuple[int, str]]:
    wanted = f"{variable}={value}".encode()
    for pid in sorted(pids):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if pid == os.getpid() or wanted not in environment:
                continue
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        command = words.decode(errors="replace").strip()
        if RESOURCE_TRACKER not in command:
            yield pid, command


def _unescape(field: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field
