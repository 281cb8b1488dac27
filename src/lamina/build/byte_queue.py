"""Queues of a conversion that are bounded in bytes, so that memory does not grow with an image."""

from __future__ import annotations

import threading
from collections import deque

from lamina.archive.blocks import Block
from lamina.errors import Error


class CancelledError(Error):
    """What waits for a queue whose other end was given up."""


class ByteQueue:
    """Blocks of bytes from one thread to another.

    It holds ``limit_bytes``, and one block more.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._blocks: deque[Block] = deque()
        self._bytes = 0
        self._ended = self._cancelled = False
        self._error: BaseException | None = None

    def put(self, block: Block) -> None:
        """Append a block once there is room.  Raises CancelledError if nobody reads any more."""
        with self._changed:
            while self._bytes >= self._limit_bytes and not self._cancelled:
                self._changed.wait()
            if self._cancelled:
                raise CancelledError("the conversion was cancelled")
            self._blocks.append(block)
            self._bytes += len(block)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing follows; the reader gets ``error`` after what is there."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def get(self) -> Block:
        """Return the next block, b"" at the end.  Raises what the writer ended with."""
        with self._changed:
            while not (self._blocks or self._ended or self._cancelled):
                self._changed.wait()
            if self._cancelled:
                raise CancelledError("the conversion was cancelled")
            if not self._blocks:
                if self._error is not None:
                    raise self._error
                return b""
            block = self._blocks.popleft()
            self._bytes -= len(block)
            self._changed.notify_all()
            return block

    def cancel(self) -> None:
        """Give up; whoever waits is woken."""
        with self._changed:
            self._cancelled = True
            self._blocks.clear()
            self._changed.notify_all()


class ByteGate:
    """Lets work begin while what is under way has less than ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._bytes = 0
        self._error: BaseException | None = None

    def enter(self, size_bytes: int) -> None:
        """Wait until there is room.  Raises what the gate was closed with."""
        with self._changed:
            while self._bytes >= self._limit_bytes and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            self._bytes += size_bytes

    def leave(self, size_bytes: int) -> None:
        """Make room."""
        with self._changed:
            self._bytes -= size_bytes
            self._changed.notify_all()

    def close(self, error: BaseException) -> None:
        """Let nobody enter any more."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
