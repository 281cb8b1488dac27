"""Many connections over one stream of bytes, such as a serial port of a virtual machine.

A frame is ``>IBI``: connection, kind, size, and so many bytes.  One side opens connections and
numbers them; the other one takes them.  Each side may send so much of a connection as the other
has room for, so that one that is not read holds up no other.  Nothing of it is believed: what is
carried is ciphertext, which its reader proves.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from lamina.errors import FormatError

HEADER: Final = struct.Struct(">IBI")
OPEN, DATA, CLOSE, CREDIT, RESET = range(1, 6)
"""Kinds: CLOSE says that no more data come, RESET that neither direction is wanted any more; of
CREDIT the size is that of what was taken, and nothing follows.
"""
MAX_DATA_BYTES: Final = 32 << 10
WINDOW_BYTES: Final = 256 << 10
"""Of a connection, in each direction, that its reader has not taken."""
MAX_CONNECTIONS: Final = 256
LINGER_S: Final = 60.0
"""So long is waited for more of who opened a connection when the one who took it has ended."""


class ByteStream(Protocol):
    """What carries the frames."""

    def read(self, size_bytes: int, /) -> bytes:
        """Return that many bytes at most; none at the end."""

    def write(self, data: bytes, /) -> None:
        """Write all of it."""


class Channel:
    """One end.  Threads share it; whoever made the stream closes it, which ends :meth:`run`."""

    def __init__(
        self,
        stream: ByteStream,
        accept: Callable[[socket.socket], None] | None = None,
        free: threading.Semaphore | None = None,
    ) -> None:
        """*accept* is given each connection that the other side opens, and then owns it.  *free*
        counts the connections that there may be still, of this channel and of those that share it.
        """
        self._stream = stream
        self._accept = accept
        self._connections: dict[int, _Connection] = {}
        self._free = free or threading.Semaphore(MAX_CONNECTIONS)
        self._last = 0
        self._is_over = False
        self._lock = threading.Lock()
        self._sending = threading.Lock()

    def connect(self, sock: socket.socket) -> None:
        """Carry what is said on *sock*, which is closed when that is over."""
        with self._lock:
            if self._is_over or not self._free.acquire(blocking=False):
                sock.close()
                return
            self._last += 1
            found = self._add(self._last, sock)
        try:
            self.send(found.number, OPEN)
        except OSError:
            found.abort()
        found.start()

    def run(self) -> None:
        """Take frames until the stream ends.  Raises FormatError for what is none, OSError."""
        try:
            while (head := self._exactly(HEADER.size)) is not None:
                number, kind, size = HEADER.unpack(head)
                data = b""
                if kind == DATA:
                    if not 0 < size <= MAX_DATA_BYTES:
                        raise FormatError(f"a frame of a channel has {size} bytes")
                    found = self._exactly(size)
                    if found is None:
                        return
                    data = found
                self._take(number, kind, size, data)
        finally:
            with self._lock:
                self._is_over = True
                connections = list(self._connections.values())
            for each in connections:
                each.abort()

    def join(self) -> None:
        """Wait for what was carried, after :meth:`run` has ended."""
        with self._lock:
            connections = list(self._connections.values())
        for each in connections:
            each.join()

    def send(self, number: int, kind: int, data: bytes = b"", size: int = 0) -> None:
        """Send a frame.  Raises OSError."""
        with self._sending:
            self._stream.write(HEADER.pack(number, kind, size or len(data)) + data)

    def forget(self, number: int) -> None:
        """Let go of a connection that is over."""
        with self._lock:
            if self._connections.pop(number, None) is not None:
                self._free.release()

    def _add(self, number: int, sock: socket.socket) -> _Connection:
        linger_s = None if self._accept is None else LINGER_S
        self._connections[number] = _Connection(self, number, sock, linger_s)
        return self._connections[number]

    def _take(self, number: int, kind: int, size: int, data: bytes) -> None:
        if kind == OPEN:
            self._opened(number)
            return
        with self._lock:
            found = self._connections.get(number)
        # One that is over here may not be over there yet.
        if found is not None:
            found.take(kind, size, data)
        elif kind not in (DATA, CLOSE, CREDIT, RESET):
            raise FormatError(f"a channel has no frames of kind {kind}")

    def _opened(self, number: int) -> None:
        if self._accept is None:
            raise FormatError("a channel opens connections from the wrong side")
        with self._lock:
            if number in self._connections:
                raise FormatError("a channel opens a connection twice")
        if not self._free.acquire(blocking=False):
            self.send(number, RESET)
            return
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            self._free.release()
            raise
        with self._lock:
            found = self._add(number, ours)
        self._accept(theirs)
        found.start()

    def _exactly(self, size_bytes: int) -> bytes | None:
        found = b""
        while len(found) < size_bytes:
            part = self._stream.read(size_bytes - len(found))
            if not part:
                return None
            found += part
        return found


class _Connection:
    """A socket whose two directions are carried by a thread each."""

    def __init__(
        self, channel: Channel, number: int, sock: socket.socket, linger_s: float | None
    ) -> None:
        self.number = number
        self._linger_s = linger_s
        self._channel = channel
        self._sock = sock
        self._changed = threading.Condition()
        self._room = WINDOW_BYTES
        """How much more the other side takes."""
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._is_ended = False
        """Whether the other side sends no more."""
        self._is_silent = False
        """Whether this side sends no more."""
        self._is_aborted = False
        self._threads = [
            # A port whose host went away may hold a writer for ever.
            threading.Thread(target=self._carry, args=(work,), name="lamina-channel", daemon=True)
            for work in (self._send, self._receive)
        ]
        self._running = len(self._threads)

    def start(self) -> None:
        """Begin to carry."""
        for thread in self._threads:
            try:
                thread.start()
            except RuntimeError:
                # There are no more to be had.
                self.abort()
                self._end_one()

    def join(self) -> None:
        """Wait until all is over."""
        for thread in self._threads:
            with suppress(RuntimeError):
                thread.join()

    def take(self, kind: int, size: int, data: bytes) -> None:
        """Take a frame.  Raises FormatError for more than there is room for."""
        with self._changed:
            if kind == DATA:
                self._inbox_bytes += len(data)
                if self._inbox_bytes > WINDOW_BYTES:
                    raise FormatError("a channel sends more than there is room for")
                self._inbox.append(data)
            elif kind == CREDIT:
                self._room = min(self._room + size, WINDOW_BYTES)
            elif kind == CLOSE:
                self._is_ended = True
            elif kind == RESET:
                self.abort()
            else:
                raise FormatError(f"a channel has no frames of kind {kind}")
            self._changed.notify_all()

    def abort(self) -> None:
        """End both directions, whatever is under way."""
        with self._changed:
            self._is_aborted = True
            self._inbox.clear()
            self._changed.notify_all()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _carry(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            self.abort()
            with suppress(OSError):
                self._channel.send(self.number, RESET)
        finally:
            self._end_one()

    def _end_one(self) -> None:
        with self._changed:
            self._running -= 1
            is_last = not self._running
        if is_last:
            self._channel.forget(self.number)
            self._sock.close()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._room or self._is_aborted)
                room = self._room
            if self._is_aborted:
                return
            data = self._sock.recv(min(room, MAX_DATA_BYTES))
            if not data:
                self._channel.send(self.number, CLOSE)
                with self._changed:
                    self._is_silent = True
                    self._changed.notify_all()
                return
            with self._changed:
                self._room -= len(data)
            self._channel.send(self.number, DATA, data)

    def _receive(self) -> None:
        while True:
            with self._changed:
                self._wait_for_more()
                if self._is_aborted:
                    return
                data = self._inbox.popleft() if self._inbox else b""
            if not data:
                self._sock.shutdown(socket.SHUT_WR)
                return
            self._sock.sendall(data)
            with self._changed:
                self._inbox_bytes -= len(data)
            self._channel.send(self.number, CREDIT, size=len(data))

    def _wait_for_more(self) -> None:
        """Wait for what the other side says.  Raises TimeoutError if it says nothing to an end."""

        def has_more() -> bool:
            return bool(self._inbox) or self._is_ended or self._is_aborted

        self._changed.wait_for(
            lambda: has_more() or (self._is_silent and self._linger_s is not None)
        )
        if not has_more() and not self._changed.wait_for(has_more, self._linger_s):
            raise TimeoutError("the other side does not end the connection")
