"""Child processes that a benchmark starts, times and ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).resolve().parents[2]
END_GRACE_S = 10.0
FIRST_OUTPUT_LIMIT_S = 600.0


class Process:
    """A background process in a session of its own; leaving the context ends all of that session's
    group.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        ready: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=None if environment is None else {**os.environ, **environment},
            )
        self.pid = self._child.pid
        if ready is not None:
            self._wait_for(ready, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process with SIGTERM, with SIGKILL if it does not listen."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()

    def _wait_for(self, word: str, log: Path) -> None:
        deadline_s = time.monotonic() + END_GRACE_S
        while word not in log.read_text(errors="replace"):
            if self._child.poll() is not None or time.monotonic() > deadline_s:
                self.close()
                raise RuntimeError(f"{self._child.args!r} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.01)


class FirstOutput(NamedTuple):
    """When a command printed its first byte, when it was done, and what it printed."""

    first_byte_s: float
    done_s: float
    output: str


def time_first_output(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> FirstOutput:
    """Run a command; measure the time from its start to the first byte on its standard output."""
    start_s = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if environment is None else {**os.environ, **environment},
    ) as child:
        assert child.stdout is not None
        first = os.read(child.stdout.fileno(), 1)
        first_byte_s = time.monotonic() - start_s
        try:
            rest, errors = child.communicate(timeout=FIRST_OUTPUT_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    if child.returncode or not first:
        message = errors.decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit status {child.returncode}: {message}")
    return FirstOutput(first_byte_s, time.monotonic() - start_s, (first + rest).decode().strip())


def drop_caches() -> None:
    """Write dirty pages back and empty the page cache, so that nothing is read from memory.  Needs
    root.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(commands: list[list[str]]) -> tuple[float, float, list[bytes]]:
    """Run commands at once; return (wall time, CPU time, their outputs)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    before = _children_cpu_s()
    start = time.perf_counter()
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    wall_s = time.perf_counter() - start
    for process in running:
        if process.returncode:
            raise SystemExit(f"{process.args!r} failed with status {process.returncode}")
    return wall_s, _children_cpu_s() - before, outputs


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
