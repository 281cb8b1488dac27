"""Which pages of an image are read, in the order of first touch."""

from __future__ import annotations

import threading
from typing import Final

from lamina.blob.page_proof import PAGE_BYTES

METADATA: Final = ""
"""Stands for the id of a blob where the bootstrap was read."""


class ReadLog:
    """Pages of blobs that were read: by kernels, by programs, and by Lamina itself.

    Threads share it.  The order of pages that several threads read at once is that in which they
    were asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[tuple[str, int], None] = {}

    def note(self, blob_id: str, offset: int, size_bytes: int) -> None:
        """Note a read."""
        stop = -(-(offset + size_bytes) // PAGE_BYTES)
        with self._lock:
            for page in range(offset // PAGE_BYTES, stop):
                self._pages.setdefault((blob_id, page))

    @property
    def pages(self) -> list[tuple[str, int]]:
        """What was read so far: (blob id, page in its uncompressed address space)."""
        with self._lock:
            return list(self._pages)
