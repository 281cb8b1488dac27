"""Writing that leaves nothing out: ``pwrite(2)`` may take fewer bytes than it was given."""

from __future__ import annotations

import os


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write *data* at *offset*, however many calls it takes.  Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count
