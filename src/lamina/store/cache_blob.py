"""One blob on this node: a sparse file in the blob's uncompressed address space, and its readiness.

The file is as long as the address space and can be a device of a kernel mount.  A chunk is written
and only then marked.  Nothing here verifies anything: the caller has done so before it writes.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from lamina.store.files import store_error, write_all
from lamina.store.readiness import ReadinessMap


class CacheBlob:
    """An open cache file.  Threads and processes may share one blob; close it when all are done."""

    def __init__(self, path: Path, fd: int, size_bytes: int, readiness: ReadinessMap) -> None:
        """Own *fd* and *readiness* from now on."""
        self.path = path
        self.fd = fd
        self.size_bytes = size_bytes
        self.chunk_count = readiness.chunk_count
        self._readiness = readiness
        self._first_missing = 0

    def is_ready(self, chunk: int) -> bool:
        """Tell whether *chunk* can be read from the file."""
        return self._readiness.is_ready(chunk)

    def first_missing(self, first: int, stop: int) -> int:
        """Return the first chunk of ``[first, stop)`` that is not ready, -1 if all are."""
        return self._readiness.first_missing(first, stop)

    def mark(self, first: int, count: int = 1) -> None:
        """Make chunks ready for every process that has the blob open; write their data first."""
        self._readiness.mark(first, count)

    @property
    def complete(self) -> bool:
        """True once every chunk is ready; this never changes back."""
        # Marks are only ever added, so what was ready need not be looked at again.
        first = self._first_missing
        if first < self.chunk_count:
            found = self._readiness.first_missing(first, self.chunk_count)
            self._first_missing = first = found if found >= 0 else self.chunk_count
        return first >= self.chunk_count

    @property
    def ready_count(self) -> int:
        """How many chunks are ready."""
        return self._readiness.ready_count

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write *data* at *offset* of the address space.  Raises StoreError."""
        try:
            write_all(self.fd, data, offset)
        except OSError as error:
            raise store_error(f"write to {self.path}", error) from error

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill *buffer* from the file; returns the count.  Raises StoreError."""
        filled = 0
        try:
            while filled < len(buffer):
                count = os.preadv(self.fd, [buffer[filled:]], offset + filled)
                if count == 0:
                    break
                filled += count
        except OSError as error:
            raise store_error(f"read {self.path}", error) from error
        return filled

    def close(self) -> None:
        """Close the file; a complete blob is flushed first, so that it outlives a reboot."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            if self.complete and not self._readiness.clean:
                os.fdatasync(fd)
                self._readiness.set_clean()
        except OSError:
            # Not flushed means not clean: the next boot fetches the blob again.
            pass
        finally:
            self._readiness.close()
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
