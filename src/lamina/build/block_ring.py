"""Blocks of streams from one forked process to another, in memory that both have.

There is a place for some blocks, and two pipes: one says which are filled, the other which were
used.  So neither process copies a block, and the faster one waits.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Final

from lamina.errors import Error

if TYPE_CHECKING:
    from lamina.archive.blocks import Block

PLACE_BYTES: Final = 256 << 10
"""What stays in the processor's cache while it is digested."""

PLACES: Final = 16

SIZE: Final = Struct("<i")
BROKEN: Final = -1


class BrokenStreamError(Error):
    """A stream whose writer failed, or is gone: it says itself why."""


class BlockRing:
    """Make it before the fork; then one process is the writer, and one the reader.

    A stream ends before the next one begins.  After a stream that did not end it is of no use.
    """

    def __init__(self, place_bytes: int = PLACE_BYTES, places: int = PLACES) -> None:
        self._place_bytes = place_bytes
        self._places = places
        self._memory = memoryview(mmap.mmap(-1, places * place_bytes))
        self._filled_read, self._filled_write = os.pipe()
        self._used_read, self._used_write = os.pipe()
        self._ends = {self._filled_read, self._filled_write, self._used_read, self._used_write}
        self._next = self._waiting = 0
        self._has_block = False

    def become_writer(self) -> None:
        """Give up the reader's ends, so that the end of the reader is noticed."""
        self._close(self._filled_read, self._used_write)

    def become_reader(self) -> None:
        """Give up the writer's ends, so that the end of the writer is noticed."""
        self._close(self._filled_write, self._used_read)

    def close(self) -> None:
        """Give up the ends that are left; may be called again."""
        self._close(*self._ends)

    def buffer(self) -> memoryview:
        """Return the place of the next block, once it is free.

        Raises BrokenStreamError if nobody reads any more.
        """
        while self._waiting >= self._places:
            used = os.read(self._used_read, self._places)
            if not used:
                raise BrokenStreamError("whoever used the layer is gone")
            self._waiting -= len(used)
        return self._place(self._next)

    def put(self, size_bytes: int) -> None:
        """Pass on the block in :meth:`buffer`; one of 0 bytes ends the stream."""
        if size_bytes:
            self._next = (self._next + 1) % self._places
            self._waiting += 1
        os.write(self._filled_write, SIZE.pack(size_bytes))

    def copy_in(self, block: Block) -> None:
        """Pass on a copy of what is not there."""
        for at in range(0, len(block), self._place_bytes):
            part = memoryview(block)[at : at + self._place_bytes]
            self.buffer()[: len(part)] = part
            self.put(len(part))

    def fail(self) -> None:
        """Say that the stream has no end."""
        os.write(self._filled_write, SIZE.pack(BROKEN))

    def get(self) -> memoryview:
        """Return the next block, an empty one at the end; it is there until the next call.

        Raises BrokenStreamError if the stream has no end.
        """
        if self._has_block:
            # Whether the writer is gone is seen below.
            with suppress(BrokenPipeError):
                os.write(self._used_write, b"\0")
        size = os.read(self._filled_read, SIZE.size)
        (size_bytes,) = SIZE.unpack(size) if size else (BROKEN,)
        if size_bytes == BROKEN:
            raise BrokenStreamError("the layer cannot be read to its end")
        self._has_block = size_bytes > 0
        block = self._place(self._next)[:size_bytes]
        if size_bytes:
            self._next = (self._next + 1) % self._places
        return block

    def _close(self, *ends: int) -> None:
        for end in ends:
            os.close(end)
        self._ends -= {*ends}

    def _place(self, number: int) -> memoryview:
        start = number * self._place_bytes
        return self._memory[start : start + self._place_bytes]
