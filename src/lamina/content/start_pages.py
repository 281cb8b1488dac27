"""Pages of an image that came ahead of the readers, in one stream, and are proven.

A reader whose pages are expected waits for their frame; whatever is wrong with the artifact, or
with who sends it, readers take the ordinary path.  So it can cost time and bytes, both bounded, but
never change what is read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from lamina.blob.page_proof import PAGE_BYTES
from lamina.blob.start_artifact import PageRange, Tables

WAIT_VARIABLE: Final = "LAMINA_START_WAIT_S"
WAIT_S: Final = 5.0
"""How long a program is kept from starting for the pages of its start, at most."""

STALL_SHARE: Final = 0.4
"""Nobody waits for a source that has sent nothing for this share of that time."""

MISSES: Final = 24
"""After so many reads of what the artifact has not, it must have served more than it missed."""


def longest_wait_s() -> float:
    """Return :data:`WAIT_S`, or what the environment says instead."""
    try:
        return max(float(os.environ.get(WAIT_VARIABLE, "")), 0.0)
    except ValueError:
        return WAIT_S


class FileExtent(NamedTuple):
    """Where a mounted image has pages that arrived, in bytes."""

    path: bytes
    offset: int
    size_bytes: int


class StartPages:
    """The pages of one artifact, by blob.  Threads share it: readers, and the one that brings them.

    Until :meth:`announce` everything is expected; after :meth:`end` nothing more.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._change = threading.Condition()
        self._tables: Tables | None = None
        self._frame_of: dict[str, dict[int, int]] = {}
        self._ready: dict[str, dict[int, memoryview]] = {}
        self._unsettled: set[int] = set()
        self._arrived: list[int] = []
        self._over = False
        self._stall_s = longest_wait_s() * STALL_SHARE
        self._asked_since: float | None = clock()
        self.served = 0
        """Reads that were answered."""
        self.missed = 0
        """Reads of pages that the artifact does not have, while it was arriving."""

    def announce(self, tables: Tables) -> None:
        """Say which pages will come."""
        expected: dict[str, dict[int, int]] = {blob_id: {} for blob_id in tables.blob_ids}
        for number, frame in enumerate(tables.frames):
            for part in frame.pages:
                pages = expected[tables.blob_ids[part.owner]]
                pages.update(dict.fromkeys(range(part.first, part.stop), number))
        with self._change:
            self._tables, self._frame_of = tables, expected
            self._unsettled = set(range(len(tables.frames)))
            self._change.notify_all()

    def ask(self) -> None:
        """Say that the source is waited for from now on."""
        with self._change:
            self._asked_since = self._clock()

    def answered(self) -> None:
        """Say that it has sent something, which is worked on now."""
        with self._change:
            self._asked_since = None

    def settle(self, number: int, pages: dict[str, dict[int, memoryview]]) -> None:
        """Give the proven pages of a frame, by blob and number; others of it will not come."""
        with self._change:
            for blob_id, found in pages.items():
                self._ready.setdefault(blob_id, {}).update(found)
            self._unsettled.discard(number)
            self._arrived.append(number)
            self._change.notify_all()

    def drop(self, blob_id: str, pages: Iterable[int]) -> None:
        """Forget pages that can be had elsewhere now."""
        with self._change:
            ready = self._ready.get(blob_id, {})
            for page in pages:
                ready.pop(page, None)

    def compact(self) -> None:
        """Keep no more in memory than the pages that are left, each of them by itself: they are
        parts of frames.
        """
        with self._change:
            for ready in self._ready.values():
                ready.update({page: memoryview(bytes(data)) for page, data in ready.items()})

    def end(self) -> None:
        """Say that nothing more will come; may be called again."""
        with self._change:
            self._over = True
            self._change.notify_all()

    @property
    def held_bytes(self) -> int:
        """What the pages take that are kept for readers."""
        with self._change:
            return sum(len(ready) for ready in self._ready.values()) * PAGE_BYTES

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def wait_over(self, longest_s: float | None = None) -> bool:
        """Return whether nothing more will come, after waiting for that at most so long."""
        with self._change:
            return self._change.wait_for(lambda: self._over, longest_s)

    def wait_asked(self, event: threading.Event) -> None:
        """Return when *event* is set, or the source sends nothing for too long."""
        while not event.is_set() and not self._over:
            with self._change:
                left_s = self._left_s()
            if left_s <= 0:
                return
            event.wait(left_s)

    @property
    def is_useless(self) -> bool:
        """Whether readers want other pages than those that come."""
        return self.missed > MISSES and self.missed > self.served

    def _left_s(self) -> float:
        """Return how long the source may still take to send something."""
        since = self._asked_since
        return self._stall_s - (0.0 if since is None else self._clock() - since)

    def read_into(self, blob_id: str, offset: int, view: memoryview) -> bool:
        """Fill *view* from *offset* on if all its pages came or are coming; else return False, with
        anything in *view*.
        """
        first, stop = offset // PAGE_BYTES, -(-(offset + len(view)) // PAGE_BYTES)
        wanted = range(first, stop)
        with self._change:
            while self._is_worth_waiting(blob_id, wanted):
                left_s = self._left_s()
                if left_s <= 0:
                    break
                self._change.wait(left_s)
            ready = self._ready.get(blob_id, {})
            pages = [ready.get(page) for page in wanted]
            has_all = all(page is not None for page in pages)
            self._count(has_all)
        if not has_all:
            return False
        _copy(pages, offset - first * PAGE_BYTES, view)
        return True

    def _count(self, has_all: bool) -> None:
        if has_all:
            self.served += 1
        elif not self._over:
            self.missed += 1

    def _is_worth_waiting(self, blob_id: str, wanted: range) -> bool:
        """Return whether all that is wanted is there or expected, and some only expected."""
        if self._over:
            return False
        if self._tables is None:
            return True
        expected, ready = self._frame_of.get(blob_id, {}), self._ready.get(blob_id, {})
        waits = False
        for page in wanted:
            if page not in ready:
                if expected.get(page, -1) not in self._unsettled:
                    return False
                waits = True
        return waits

    def wait_arrived(self, seen: int) -> list[FileExtent] | None:
        """Return where files have what arrived after the first *seen* frames, as soon as there is
        something; None when nothing more will come, or the source does not send.
        """
        with self._change:
            while len(self._arrived) <= seen:
                left_s = self._left_s()
                if self._over or left_s <= 0:
                    return None
                self._change.wait(left_s)
            tables, number = self._tables, self._arrived[seen]
        assert tables is not None
        return [_extent(tables, part) for part in tables.frames[number].files]


def _extent(tables: Tables, part: PageRange) -> FileExtent:
    return FileExtent(tables.paths[part.owner], part.first * PAGE_BYTES, part.pages * PAGE_BYTES)


def _copy(pages: Sequence[memoryview | None], skip: int, view: memoryview) -> None:
    """Put pages one behind the other into *view*, without the first *skip* bytes."""
    filled = 0
    for page in pages:
        assert page is not None
        part = page[skip : skip + len(view) - filled]
        view[filled : filled + len(part)] = part
        filled += len(part)
        skip = 0
