"""How far long transfers are: bars of rich on a terminal, else a line every few seconds, nothing
with ``--quiet``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, Self

from lamina.cli import story
from lamina.cli.output import human_size

LINE_INTERVAL_S: Final = 5.0
REFRESH_INTERVAL_S: Final = 0.1

Advance = Callable[[int], None]
"""Told the bytes that moved since the last call; may be called from any thread."""


class Meter(Protocol):
    """Shows any number of tasks at once."""

    def add(self, label: str, total_bytes: int | None = None) -> Advance:
        """Start to show a task and return what to call as it moves."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


def open_meter() -> Meter:
    """The meter that suits this process's standard error."""
    if story.is_quiet():
        return SilentMeter()
    if not story.is_plain():
        try:
            return RichMeter()
        except ImportError:
            pass
    return LineMeter()


class SilentMeter:
    """Shows nothing."""

    def add(self, label: str, total_bytes: int | None = None) -> Advance:  # noqa: ARG002
        """Start a task that nobody sees."""
        return lambda moved: None  # noqa: ARG005

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class LineMeter(SilentMeter):
    """Prints a line a task every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()

    def add(self, label: str, total_bytes: int | None = None) -> Advance:
        """Start a task; its first line comes after five seconds."""
        moved_bytes = 0
        next_line_s = self._clock() + LINE_INTERVAL_S

        def advance(moved: int) -> None:
            nonlocal moved_bytes, next_line_s
            with self._lock:
                moved_bytes += moved
                if self._clock() < next_line_s:
                    return
                next_line_s = self._clock() + LINE_INTERVAL_S
                of_total = f" of {human_size(total_bytes)}" if total_bytes else ""
                story.tell(f"{label}: {human_size(moved_bytes)}{of_total}", moved_bytes=moved_bytes)

        return advance


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

    def add(self, label: str, total_bytes: int | None = None) -> Advance:
        """Start a bar; without a total it only pulses."""
        task = self._bars.add_task(label, total=total_bytes)

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
