"""Ends a test run in which nothing happens any more, and tells what everything was waiting for.

A reader of a mount that nobody serves cannot be interrupted, so a time limit inside its process
may not help.  A pytest plugin of the process that hears of all results.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

SILENCE_S = 600
"""Twice the time limit of a test."""
_LOOK_S = 5


class Watchdog:
    """Notes when the last result came; see the module."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Something happens."""
        del report
        self._last = time.monotonic()

    def _watch(self) -> None:
        looked = time.monotonic()
        while time.monotonic() - self._last < SILENCE_S:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            # A machine that was suspended is no reason.
            self._last += max(0.0, now - looked - 10 * _LOOK_S)
            looked = now
        print(f"\nno test has ended for {SILENCE_S} s; what waits:", file=sys.stderr)
        for line in waiting_processes():
            print(line, file=sys.stderr)
        sys.stderr.flush()
        os._exit(70)


def waiting_processes() -> list[str]:
    """Describe each thread of user space: state, where in the kernel it waits, whose it is."""
    lines = []
    for thread in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        try:
            # Not the command line: reading that may have to wait for the process.
            name = (thread / "comm").read_text().strip()
            state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
            place = (thread / "wchan").read_text()
            parent = (thread / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent != "2":
            ids = f"{thread.parent.parent.name}/{thread.name}"
            lines.append(f"{ids:>15} {parent:>7} {state} {place:<32} {name}")
    return sorted(lines)
