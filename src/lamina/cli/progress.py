"""How far long transfers are: bars of rich on a terminal, else a line every few seconds, nothing
with ``--quiet``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, Self

from lamina.cli import console
from lamina.cli.output import human_size

LINE_INTERVAL_S: Final = 5.0
REFRESH_INTERVAL_S: Final = 0.1

Advance = Callable[[int], None]
"""Told the bytes that moved since the last call; may be called from any thread."""


class Meter(Protocol):
    """Shows any number of tasks at once."""

    def add(self, label: str, total_bytes: int | None = None) -> Advance:
        """Start to show a task and return what to call as it moves."""

    def resize(self, label: str, total_bytes: int) -> None:
        """Tell a total that was not known at the start."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


def open_meter() -> Meter:
    """Return the meter that suits this process's standard error."""
    if console.is_quiet():
        return SilentMeter()
    if not console.is_plain():
        try:
            return RichMeter()
        except ImportError:
            pass
    return LineMeter()


def phase_bars(meter: Meter) -> Callable[[str, int, int], None]:
    """Return what is told a phase, its bytes in all, and how many more of them are done: each has a
    bar from then on.
    """
    shown: dict[str, Advance] = {}

    def show(phase: str, total_bytes: int, done_bytes: int) -> None:
        if phase not in shown:
            shown[phase] = meter.add(phase, total_bytes)
        shown[phase](done_bytes)

    return show


class SilentMeter:
    """Shows nothing."""

    def add(self, label: str, total_bytes: int | None = None) -> Advance:  # noqa: ARG002
        """Start a task that nobody sees."""
        return lambda moved: None  # noqa: ARG005

    def resize(self, label: str, total_bytes: int) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class LineMeter(SilentMeter):
    """Prints a line a task every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: dict[str, int | None] = {}

    def resize(self, label: str, total_bytes: int) -> None:
        """Say the total in the next line."""
        self._totals[label] = total_bytes

    def add(self, label: str, total_bytes: int | None = None) -> Advance:
        """Start a task; its first line comes after five seconds."""
        moved_bytes = 0
        begin_s = self._clock()
        self._totals[label] = total_bytes
        next_line_s = begin_s + LINE_INTERVAL_S

        def advance(moved: int) -> None:
            nonlocal moved_bytes, next_line_s
            with self._lock:
                moved_bytes += moved
                now_s = self._clock()
                if now_s < next_line_s:
                    return
                next_line_s = now_s + LINE_INTERVAL_S
                total = self._totals[label]
                console.info(
                    f"{label}: {_line(moved_bytes, total, now_s - begin_s)}",
                    moved_bytes=moved_bytes,
                    total_bytes=total,
                )

        return advance


def _line(moved_bytes: int, total_bytes: int | None, elapsed_s: float) -> str:
    """``20 MB of 139 MB, 4 MB/s, 30 s left``"""
    rate = moved_bytes / max(elapsed_s, 0.001)
    said = f"{human_size(round(rate))}/s"
    if not total_bytes:
        return f"{human_size(moved_bytes)}, {said}"
    left_s = max(total_bytes - moved_bytes, 0) / max(rate, 1)
    return f"{human_size(moved_bytes)} of {human_size(total_bytes)}, {said}, {left_s:.0f} s left"


class RichMeter:
    """Bars on a terminal.  Raises ImportError where rich is not installed."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bars: Any = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            # Without a thread of its own: a conversion forks.
            auto_refresh=False,
        )
        self._next_refresh_s = 0.0
        self._tasks: dict[str, Any] = {}

    def resize(self, label: str, total_bytes: int) -> None:
        """Give a bar its total."""
        self._bars.update(self._tasks[label], total=total_bytes)

    def add(self, label: str, total_bytes: int | None = None) -> Advance:
        """Start a bar; without a total it only pulses."""
        task = self._tasks[label] = self._bars.add_task(label, total=total_bytes)

        def advance(moved: int) -> None:
            self._bars.update(task, advance=moved)
            if time.monotonic() >= self._next_refresh_s:
                self._next_refresh_s = time.monotonic() + REFRESH_INTERVAL_S
                self._bars.refresh()

        return advance

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bars.stop()
