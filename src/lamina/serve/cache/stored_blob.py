"""One blob in the cache: what is here is read, what is not is fetched once for all who want it."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final, Self

from lamina.errors import FetchError, IntegrityError, StoreError
from lamina.serve.cache.cells import Cells, Placing
from lamina.source.single_flight import Flight, SingleFlight

if TYPE_CHECKING:
    from lamina.serve.cache.allowance import Allowance
    from lamina.source.fetcher import Fetcher
    from lamina.store.node import NodeStore

LOG: Final = logging.getLogger("lamina")

WINDOW_BYTES: Final = 4 << 20
"""The most of a blob that is in memory for one reader, and fetched by one request."""


class StoredBlob:
    """A blob by its hex digest, kept as it came.  Threads share it; the store is the caller's."""

    def __init__(self, blob_id: str, cells: Cells, store: NodeStore, memory: Allowance) -> None:
        """*memory* is for what readers have not taken yet, which may take them long."""
        placing = Placing(cells)
        self.size_bytes = cells.size_bytes
        self._memory = memory
        self._blob_id = blob_id
        self._cells = cells
        self._place = placing.place
        self._cache = store.blob(
            blob_id,
            placing.file_bytes,
            cells.count,
            identity=cells.identity,
            zones=lambda: placing.zones,
        )
        self._flights: SingleFlight[int] = SingleFlight()
        self._proving = threading.Lock()
        self._fetched = object()
        """Another one for each fetch, after which what is here is not proven any more."""
        self._proven = self._fetched if cells.is_proving else None

    def read(self, start: int, stop: int, source: Fetcher) -> Generator[memoryview]:
        """Yield the bytes of a range, window by window; what is missing comes from *source*.

        Raises FetchError, NotFoundError; IntegrityError for bytes that are proven wrong, which are
        not kept.
        """
        while start < stop:
            with self._memory.lent(min(stop - start, WINDOW_BYTES)) as size:
                yield self._window(start, start + size, source)
            start += size

    def _window(self, start: int, stop: int, source: Fetcher) -> memoryview:
        cells = range(self._cells.find(start), self._cells.find(stop - 1) + 1)
        here = self._get(cells, source)
        self._prove()
        begin = self._cells.extent(cells.start)[0]
        joined = b"".join([here[index] for index in cells])
        window = memoryview(joined)[start - begin : stop - begin]
        # A large cell is not held for a small part of it.
        return window if 2 * len(window) >= len(joined) else memoryview(bytes(window))

    def _get(self, cells: range, source: Fetcher) -> dict[int, bytes]:
        here: dict[int, bytes] = {}
        while True:
            missing = [index for index in cells if index not in here]
            missing = [index for index in missing if not self._take(index, here)]
            if not missing:
                return here
            mine, others = self._flights.claim(missing)
            self._fetch(mine, here, source)
            for flight in others:
                error = flight.wait(source.policy.deadline_s)
                if error is not None:
                    raise FetchError(f"{error}") from error

    def _take(self, index: int, here: dict[int, bytes]) -> bool:
        """Take a cell from the cache file, if it is there."""
        if not self._cache.is_ready(index):
            return self._take_doubtful(index, here)
        size = self._cells.extent(index)[1]
        buffer = bytearray(size)
        place = self._place(index)
        if self._cache.read_ready(place, memoryview(buffer), range(index, index + 1)) != size:
            return False
        here[index] = bytes(buffer)
        return True

    def _take_doubtful(self, index: int, here: dict[int, bytes]) -> bool:
        """Take a cell that the file may have from before the machine's last start, if it is
        proven.
        """
        if not (self._cells.is_proving and self._cache.is_unverified(index)):
            return False
        buffer = bytearray(self._cells.extent(index)[1])
        self._cache.read_into(self._place(index), memoryview(buffer))
        try:
            self._cells.check(index, buffer)
        except IntegrityError:
            self._cache.clear_unverified(index)
            return False
        here[index] = bytes(buffer)
        self._keep(index, here[index])
        return True

    def _fetch(self, flights: list[Flight[int]], here: dict[int, bytes], source: Fetcher) -> None:
        """Fetch cells, neighbours together; whatever becomes of it, who waits for them goes on."""
        error: Exception | None = None
        try:
            for first, stop in _runs([flight.key for flight in flights]):
                self._fetch_run(range(first, stop), here, source)
        except Exception as raised:
            error = raised
            raise
        finally:
            for flight in flights:
                self._flights.land(flight, error)

    def _fetch_run(self, run: range, here: dict[int, bytes], source: Fetcher) -> None:
        begin = self._cells.extent(run.start)[0]
        offset, size = self._cells.extent(run.stop - 1)
        data = source.read_range(self._blob_id, begin, offset + size - begin)
        if not self._cells.is_proving:
            self._fetched = object()
        for index in run:
            offset, size = self._cells.extent(index)
            part = bytes(data[offset - begin : offset - begin + size])
            self._cells.check(index, part)
            here[index] = part
            self._keep(index, part)

    def _keep(self, index: int, data: bytes) -> None:
        try:
            self._cache.put([(self._place(index), data)], range(index, index + 1))
        except StoreError as error:
            # The reader gets its bytes all the same.
            LOG.warning("nothing more is kept: %s", error)

    def _prove(self) -> None:
        """Prove by its digest what no cell could, once all is here; else forget all of it."""
        fetched = self._fetched
        if self._proven is fetched or not self._cache.complete:
            return
        if not self._proving.acquire(blocking=False):
            # While one does it, others go on as they did before all was here.
            return
        try:
            hasher, here = hashlib.sha256(), dict[int, bytes]()
            for index in range(self._cells.count):
                if not self._take(index, here):
                    return
                hasher.update(here.pop(index))
            if hasher.hexdigest() != self._blob_id:
                self._cache.space.forget(self._cache.path)
                raise IntegrityError(
                    f"what the registry sent of sha256:{self._blob_id} has another digest",
                    hint="it is forgotten, and will be fetched again",
                )
            self._proven = fetched
        finally:
            self._proving.release()

    def close(self) -> None:
        """Close the cache file; again does nothing."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of neighbours in an ascending list."""
    begin = 0
    for at in range(1, len(indices) + 1):
        if at == len(indices) or indices[at] != indices[at - 1] + 1:
            yield indices[begin], indices[at - 1] + 1
            begin = at
