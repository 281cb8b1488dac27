"""A reading process of a station, and what came of it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.tally import BY_WAY, BYTES, IMPOSSIBLE, LONGEST, READS, WRONG, Tally
from tests.faults.ways import WAYS


@dataclass
class Counts:
    """What came of it."""

    injected: Counter[str] = field(default_factory=Counter)
    errors: Counter[int] = field(default_factory=Counter)
    reads: int = 0
    bytes: int = 0
    wrong: int = 0
    hangs: int = 0
    crashes: int = 0
    """Readers that ended by themselves, and mounts that could not be mended."""
    mounts: int = 0
    longest_s: float = 0.0
    by_way: Counter[str] = field(default_factory=Counter)
    """Reads in each way that came to an end with bytes."""
    impossible: Counter[str] = field(default_factory=Counter)
    """Readers that found a way closed."""
    details: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Add what another has counted."""
        for name in ("reads", "bytes", "wrong", "hangs", "crashes", "mounts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("injected", "errors", "by_way", "impossible"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest_s = max(self.longest_s, other.longest_s)
        self.details += other.details


class Reading:
    """A reader process and its tally."""

    def __init__(self, mountpoint: Path, tree: Path, tally: Path, seed: str) -> None:
        self._path = tally
        self.tally = Tally(tally)
        script = Path(__file__).with_name("reader.py")
        arguments = [mountpoint, tree, tally, seed, "3600"]
        # No tree of ours on its path, and no site-packages: it is to start fast.
        command = [sys.executable, "-S", script, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.hung = False

    def is_hung(self, hang_s: float) -> bool:
        """Whether its read takes too long; True once only."""
        if not self.hung and self.tally.waiting_s() > hang_s:
            self.hung = True
            return True
        return False

    def finish(self, wait_s: float, counts: Counts, device: str) -> None:
        """Stop it and add up what it did.  One that does not stop is hung."""
        self.process.terminate()
        try:
            output, _ = self.process.communicate(timeout=wait_s)
        except subprocess.TimeoutExpired:
            if not self.hung:
                counts.hangs += 1
                counts.details.append({"device": device, "hang": self.state()})
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=5)
            output = b""
        if self.process.returncode not in (0, -signal.SIGTERM, -signal.SIGKILL):
            counts.crashes += 1
            counts.details.append({"device": device, "reader ended with": self.process.returncode})
        for line in output.splitlines():
            counts.details.append({"device": device, "wrong": json.loads(line)})
        counts.reads += self.tally.number(READS)
        counts.bytes += self.tally.number(BYTES)
        counts.wrong += self.tally.number(WRONG)
        counts.errors += self.tally.errors()
        for number, way in enumerate(WAYS):
            counts.by_way[way] += self.tally.number(BY_WAY + number)
            counts.impossible[way] += self.tally.number(IMPOSSIBLE + number)
        counts.longest_s = max(counts.longest_s, self.tally.number(LONGEST) / 1e9)
        self.tally.close()
        self._path.unlink()

    def state(self) -> str:
        """Where in the kernel it waits."""
        try:
            return Path(f"/proc/{self.process.pid}/stack").read_text()
        except OSError as error:
            return str(error)
