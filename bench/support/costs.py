"""What commands cost: time, memory of all their processes at a time, and bytes written to disk."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_S = 0.05


class Cost(NamedTuple):
    """What one run took.

    ``memory_bytes`` is the most that all of its processes had resident at one time, pages that they
    share counted once; ``written_bytes`` is what became dirty in the page cache.
    """

    wall_s: float
    user_s: float
    system_s: float
    memory_bytes: int
    written_bytes: int

    @property
    def cpu_s(self) -> float:
        """User and system time."""
        return self.user_s + self.system_s


class _Memory(threading.Thread):
    """Looks at the processes below this one now and then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_bytes = 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(SAMPLE_S):
            self.most_bytes = max(self.most_bytes, sum(map(_proportional_bytes, _descendants())))

    def finish(self) -> int:
        self._end.set()
        self.join()
        return self.most_bytes


def cost_of(*stages: Sequence[Sequence[str]]) -> Cost:
    """Run the commands of each stage at once, one stage after the other.

    Raises SystemExit if one fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    before, written = resource.getrusage(resource.RUSAGE_CHILDREN), _written_bytes()
    memory = _Memory()
    memory.start()
    start = time.perf_counter()
    for commands in stages:
        _run(commands, environment)
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(
        wall_s,
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        memory.finish(),
        _written_bytes() - written,
    )


def _run(commands: Sequence[Sequence[str]], environment: dict[str, str]) -> None:
    with tempfile.TemporaryFile() as errors:
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
            for command in commands
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            errors.seek(0)
            raise SystemExit(f"{commands!r} failed with {codes}: {errors.read()[-1000:]!r}")


def _written_bytes() -> int:
    """Of this process and all children it has waited for (proc_pid_io(5))."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def _descendants() -> list[int]:
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        for task in _listed(f"/proc/{todo.pop()}/task"):
            try:
                children = Path(f"{task}/children").read_text().split()
            except OSError:
                continue
            found += map(int, children)
            todo += map(int, children)
    return found


def _listed(folder: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except OSError:
        return []


def _proportional_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if "Pss:" in line), 0)
