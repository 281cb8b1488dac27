"""The trees of an image, in a process of their own: it is given the entries of the layers as they
come, and gives back bootstraps that are laid out.

Merging takes as long as reading headers does, and neither releases the interpreter's lock.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lamina.build.workers import Workers
from lamina.errors import UnsupportedError

if TYPE_CHECKING:
    from lamina.build.budget import Share
    from lamina.build.options import ConvertOptions
    from lamina.build.plan import LayerPlan
    from lamina.build.scan import LayerScan
    from lamina.build.trees import Trees

MAX_BATCHES: Final = 16
"""How many parts of layers may be on their way to the process."""

PART_BYTES: Final = 8 << 20
"""So large that a part goes back to the system when it is freed."""

LOG: Final = logging.getLogger("lamina")


class Parcel:
    """A bootstrap on its way: in parts, the last one first, so that both ends have it once and not
    twice, together or each.
    """

    def __init__(self, data: bytearray) -> None:
        """*data* is used up."""
        self._parts: list[bytes | bytearray] = []
        while len(data) > PART_BYTES:
            self._parts.append(bytes(memoryview(data)[-PART_BYTES:]))
            del data[-PART_BYTES:]
        self._parts.append(data)

    def take(self) -> bytearray:
        """Return the bootstrap, which is not kept."""
        data = bytearray()
        while self._parts:
            data += self._parts.pop()
        return data


@dataclass(slots=True)
class OwnLayout:
    """The bootstrap of a layer by itself, laid out but not filled in; the layers of its blobs, and
    the numbers of the chunks that it takes from lower ones, by layer.
    """

    bootstrap: Parcel = field(default_factory=lambda: Parcel(bytearray()))
    layers: list[int] = field(default_factory=list)
    borrowed: dict[int, array[int]] = field(default_factory=dict)


@dataclass(slots=True)
class MergedLayout:
    """The bootstrap of all layers, laid out but not filled in; the layers that it takes data from,
    and the paths to prefetch that it has not.
    """

    bootstrap: Parcel
    layers: list[int]
    missing: list[bytes]


class TreeProcess:
    """The converter's end.  Make it before any thread; leaving the context ends the process."""

    def __init__(self, options: ConvertOptions, budget: Share) -> None:
        """*budget* counts the directories that no entry describes."""
        self._workers = Workers(1, _set_up, (options, budget))
        self._batches: deque[Future[None]] = deque()

    def __enter__(self) -> TreeProcess:
        self._workers.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._workers.__exit__(*exc_info)

    def add_entries(self, entries: LayerScan) -> None:
        """Add entries of the layer that is read now.

        Raises what went wrong with those before, as FormatError where one cannot be placed.
        """
        self._batches.append(self._workers.submit(_add, entries))
        while len(self._batches) > MAX_BATCHES:
            self._batches.popleft().result()

    def end_layer(self, plan: LayerPlan) -> Future[OwnLayout]:
        """Lay a layer over those before, and lay out its own bootstrap.  Raises as above."""
        while self._batches:
            self._batches.popleft().result()
        return self._noted(self._workers.submit(_end_layer, plan))

    def finish(self) -> Future[MergedLayout]:
        """Lay out the bootstrap of all."""
        future = self._noted(self._workers.submit(_finish))
        self._workers.no_more()
        return future

    def _noted(self, future: Future[Any]) -> Future[Any]:
        """Log what the process has to say where the converter logs."""

        def say(done: Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                for note in done.result()[1]:
                    LOG.warning("%s", note)
                result.set_result(done.result()[0])
            else:
                result.set_exception(done.exception() or UnsupportedError("cancelled"))

        result: Future[Any] = Future()
        future.add_done_callback(say)
        return result


_trees: Trees
_notes: list[str] = []


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _notes.append(record.getMessage())


def _set_up(state: tuple[ConvertOptions, Share]) -> None:
    global _trees  # noqa: PLW0603 - the process has one image
    # Loaded here, it does not keep the converter from starting.
    from lamina.build.trees import Trees

    LOG.handlers[:] = [_Notes()]
    LOG.propagate = False
    _trees = Trees(*state)


def _add(entries: LayerScan) -> None:
    _trees.add(entries)


def _end_layer(plan: LayerPlan) -> tuple[OwnLayout, list[str]]:
    return _trees.end_layer(plan), _taken_notes()


def _finish() -> tuple[MergedLayout, list[str]]:
    return _trees.finish(), _taken_notes()


def _taken_notes() -> list[str]:
    taken = _notes[:]
    _notes.clear()
    return taken
