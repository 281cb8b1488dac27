"""Prune and pack the windows of a layer in a process of its own: it takes as long as inflating."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Final, NamedTuple

from lamina.archive.access_points import AccessPoint
from lamina.archive.window_pruning import WindowPruner
from lamina.blob.split_table import pack_window
from lamina.build.workers import Workers
from lamina.posix.heap import keep_freed_memory

BATCH_WINDOWS: Final = 8
MAX_BATCHES: Final = 3
"""How many may be on their way."""

Packed = tuple[bytes, int]


class _Batch(NamedTuple):
    """Points by their numbers, and the packed windows that they get."""

    points: list[tuple[int, AccessPoint]]
    packed: Future[list[Packed]]


class WindowProcess:
    """Thins out windows of the points of one layer (see :class:`GzipPoints`)."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._waiting: list[tuple[int, AccessPoint]] = []
        self._following: list[bytes] = []
        self._batches: deque[_Batch] = deque()

    def thin_out(self, points: list[AccessPoint], following: bytes) -> None:
        """Thin out the window of the last point, sooner or later."""
        self._waiting.append((len(points) - 1, points[-1]))
        self._following.append(following)
        if len(self._waiting) >= BATCH_WINDOWS:
            self._send(points)

    def finish(self, points: list[AccessPoint]) -> None:
        """Wait for all windows."""
        self._send(points)
        while self._batches:
            self._receive(points)

    def close(self) -> None:
        """Nothing stays open here."""

    def _send(self, points: list[AccessPoint]) -> None:
        batch = [point for _, point in self._waiting]
        packed = self._workers.submit(thinned_windows, batch, self._following)
        self._batches.append(_Batch(self._waiting, packed))
        self._waiting, self._following = [], []
        while len(self._batches) > MAX_BATCHES:
            self._receive(points)

    def _receive(self, points: list[AccessPoint]) -> None:
        batch = self._batches.popleft()
        for (number, point), packed in zip(batch.points, batch.packed.result(), strict=True):
            # Another point may have come in its place.
            if points[number] is point:
                points[number] = point._replace(window=b"", packed=packed)


@contextmanager
def window_process() -> Iterator[WindowProcess]:
    """Start the process, which ends with the context.  Call it without threads."""
    with Workers(1, _set_up, None) as workers:
        yield WindowProcess(workers)


@cache
def _pruner() -> WindowPruner:
    return WindowPruner()


def _set_up(_state: None) -> None:
    keep_freed_memory()


def thinned_windows(points: list[AccessPoint], following: list[bytes]) -> list[Packed]:
    """Return the windows of some points as they are stored."""
    pruned = _pruner().pruned
    return [
        pack_window(pruned(point.window, after, point.bits, point.byte))
        for point, after in zip(points, following, strict=True)
    ]
