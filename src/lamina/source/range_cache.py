"""The stored bytes that were fetched last, for pieces that overlap.

A chunk of a compressed stream needs all input from an access point on, and the next chunk the same
and some more.  What the first had fetched is not fetched again for the second.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from lamina.source.blob_source import BlobSource
from lamina.source.fetcher import Fetcher

RECENT_BYTES = 8 << 20
"""How much is kept of a blob."""


class Gathered(NamedTuple):
    """Bytes, who sent them, and how many of them were fetched for this."""

    data: memoryview
    source: BlobSource
    fetched_bytes: int


class _Extent(NamedTuple):
    offset: int
    data: memoryview
    source: BlobSource

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class RangeCache:
    """What was fetched last of one blob, verified by nobody.  Threads share it."""

    def __init__(self, limit_bytes: int = RECENT_BYTES) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._extents: list[_Extent] = []

    def fetch(
        self, fetcher: Fetcher, blob_id: str, offset: int, size_bytes: int, deadline: float
    ) -> Gathered:
        """Return exactly these bytes, fetching what is not kept of them; raises what fetching
        does.
        """
        end = offset + size_bytes
        head, tail = self._around(offset, end)
        start = offset if head is None else min(head.end, end)
        stop = end if tail is None else max(tail.offset, start)
        whole = memoryview(bytearray(size_bytes))
        if head is not None:
            whole[: start - offset] = head.data[offset - head.offset : start - head.offset]
        if tail is not None:
            whole[stop - offset :] = tail.data[stop - tail.offset : end - tail.offset]
        if start < stop:
            missing = whole[start - offset : stop - offset]
            source = fetcher.fetch_into(blob_id, start, missing, deadline=deadline)
        else:
            kept = head or tail
            assert kept is not None
            source = kept.source
        self._keep(_Extent(offset, whole, source))
        return Gathered(whole, source, stop - start)

    def forget(self) -> None:
        """Keep nothing of what there is: it turned out to be wrong."""
        with self._lock:
            self._extents.clear()

    def _around(self, offset: int, end: int) -> tuple[_Extent | None, _Extent | None]:
        """Return what reaches farthest from the begin, and what from the end, if anything does."""
        with self._lock:
            extents = list(self._extents)
        heads = [each for each in extents if each.offset <= offset < each.end]
        tails = [each for each in extents if each.offset < end <= each.end]
        head = max(heads, key=lambda each: each.end, default=None)
        tail = min(tails, key=lambda each: each.offset, default=None)
        if head is not None and head.end >= end:
            tail = None
        return head, tail

    def _keep(self, new: _Extent) -> None:
        with self._lock:
            kept = [e for e in self._extents if e.offset < new.offset or e.end > new.end]
            kept.append(new)
            size = sum(len(each.data) for each in kept)
            while kept and size > self._limit:
                size -= len(kept.pop(0).data)
            self._extents = kept
