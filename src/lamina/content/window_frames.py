"""The windows of a split chunk table, fetched when they are needed and kept as they are stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from lamina.errors import Error, FetchError
from lamina.source.single_flight import SingleFlight

LEAST_BYTES: Final = 8 << 10
"""What a request fetches at least: neighbours are likely to be needed, and cost little."""


class WindowFrames:
    """Implements :class:`lamina.blob.split_table.Windows`.  Threads share it."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        ahead_bytes: Callable[[], int],
        start: int,
        sizes: Sequence[int],
    ) -> None:
        """Know where frames are that have these *sizes* and lie one behind the other from *start*
        on, which ``read(offset, size_bytes)`` reads; ``ahead_bytes()`` more than is wanted pay.
        """
        self._read = read
        self._ahead_bytes = ahead_bytes
        self._offsets = list(accumulate(sizes, initial=start))
        self._frames: dict[int, bytes] = {}
        self._flights: SingleFlight[int] = SingleFlight()
        self._lock = threading.Lock()

    def has(self, number: int) -> bool:
        """Tell whether the frame is here."""
        return number in self._frames

    def frame(self, number: int) -> bytes:
        """Return a frame; raises what reading raises."""
        while (found := self._frames.get(number)) is None:
            mine, others = self._flights.claim([number])
            if others:
                failure = others[0].wait()
                if failure is not None:
                    raise failure
                continue
            failure = None
            try:
                self._fetch(number)
            except Error as error:
                failure = error
                raise
            finally:
                self._flights.land(mine[0], failure)
        return found

    def forget(self) -> None:
        """Keep no frame any more."""
        with self._lock:
            self._frames = {}

    def _fetch(self, first: int) -> None:
        """Fetch a frame and those behind it that are not here."""
        offsets = self._offsets
        limit = offsets[first] + max(LEAST_BYTES, self._ahead_bytes())
        stop = first + 1
        while stop < len(offsets) - 1 and stop not in self._frames and offsets[stop + 1] <= limit:
            stop += 1
        start, size = offsets[first], offsets[stop] - offsets[first]
        data = self._read(start, size)
        if len(data) != size:
            raise FetchError(f"{len(data)} bytes of a chunk table came instead of {size}")
        frames = {n: data[offsets[n] - start : offsets[n + 1] - start] for n in range(first, stop)}
        with self._lock:
            self._frames.update(frames)
