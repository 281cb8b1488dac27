"""Messages between the processes of the service: JSON objects with descriptors, over sequenced
packets.

A message that fits is one packet of JSON, ``{...}``.  A longer one, or one with more descriptors
than the kernel passes at a time, is several packets: ``+`` and bytes, and at the end ``.`` and
bytes, of which the JSON is made; the descriptors come with them in their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from lamina.errors import KernelError

PACKET_BYTES: Final = 160 * 1024
"""Below what Linux lets a socket buffer by default (212992 bytes)."""

PACKET_DESCRIPTORS: Final = 250
"""Of one packet; the kernel's limit is 253 (SCM_MAX_FD)."""

MAX_MESSAGE_BYTES: Final = 64 << 20
"""A status of 300 000 mounts; what is longer is a defect of who sends it."""

_MORE: Final = b"+"
_LAST: Final = b"."


class ChannelError(KernelError):
    """What was sent or received is no message: too long, cut off, or not of our kind."""


class Message(NamedTuple):
    """``body["op"]`` says what it is; the descriptors belong to the receiver."""

    body: dict[str, Any]
    fds: list[int]


class Channel:
    """One end of a connection.  One thread receives; any thread sends."""

    def __init__(self, end: socket.socket) -> None:
        """Own ``end`` from now on."""
        self._socket = end
        self._sending = threading.Lock()
        self._data = bytearray()
        self._fds: list[int] = []
        self._mark = b""

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return two ends of a new connection."""
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(two)

    def fileno(self) -> int:
        """Return the descriptor, to be polled; -1 once it is closed."""
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Bound each later call; it raises TimeoutError then."""
        self._socket.settimeout(seconds)

    def send(self, body: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """Send a message.  Raises OSError if the other end is closed, and ChannelError if the
        message is too long.
        """
        data = json.dumps(body).encode()
        if len(data) > MAX_MESSAGE_BYTES:
            raise ChannelError(f"a message of {len(data)} bytes is too long for the mount service")
        with self._sending:
            for packet, some in _packets(data, fds):
                if some:
                    socket.send_fds(self._socket, [packet], some)
                else:
                    self._socket.send(packet)

    def receive(self) -> Message | None:
        """Wait for a message; None when the other end is closed.  Raises ChannelError."""
        while self._read_packet():
            message = self._whole()
            if message is not None:
                return message
        return None

    def receive_some(self) -> Message | None:
        """The same for one who must not wait for the rest of a long message, when there is
        something to receive.  Raises BlockingIOError if the rest is still to come.
        """
        if not self._read_packet():
            return None
        message = self._whole()
        if message is None:
            raise BlockingIOError("the rest of a message is still to come")
        return message

    def _read_packet(self) -> bool:
        """Take a packet; False when the other end is closed."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, PACKET_BYTES, PACKET_DESCRIPTORS)
        except ConnectionError:
            data, fds, flags = b"", [], 0
        for fd in fds:
            os.set_inheritable(fd, False)
        self._fds += fds
        if flags & socket.MSG_CTRUNC:
            raise self._refusal(
                "descriptors of a message are lost, because this process may not open more files",
                "raise the limit of open files (ulimit -n)",
            )
        if flags & socket.MSG_TRUNC:
            raise self._refusal("a packet of a message is too long")
        if not data:
            return False
        self._mark = data[:1]
        if self._mark not in (_MORE, _LAST) and self._data:
            raise self._refusal("a message has no end")
        self._data += data[1:] if self._mark in (_MORE, _LAST) else data
        return True

    def _whole(self) -> Message | None:
        """Return the message that is complete now, None if more of it is to come."""
        if len(self._data) > MAX_MESSAGE_BYTES:
            raise self._refusal("a message is longer than any of the mount service")
        if self._mark == _MORE:
            return None
        try:
            body = json.loads(self._data)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("op"), str):
            raise self._refusal("the other end says what is no message of the mount service")
        message = Message(body, self._fds)
        self._data, self._fds = bytearray(), []
        return message

    def _refusal(self, what: str, hint: str | None = None) -> ChannelError:
        self._forget()
        return ChannelError(what, hint=hint)

    def _forget(self) -> None:
        """Let go of what there is of a message."""
        self._data.clear()
        while self._fds:
            os.close(self._fds.pop())

    def say(self, op: str, fds: Sequence[int] = (), **fields: object) -> bool:
        """Send ``op`` with its fields; return False if nobody is there to receive it, or takes it
        in time.  Raises ChannelError for what cannot be sent to anybody.
        """
        try:
            self.send({"op": op, **fields}, fds)
        except OSError as error:
            closed = self._socket.fileno() < 0
            if closed or isinstance(error, ConnectionError | TimeoutError):
                return False
            raise ChannelError(f"the mount service cannot be told {op!r}: {error}") from error
        return True

    def ask(self, op: str, fds: Sequence[int] = (), **fields: object) -> Message | None:
        """Send ``op`` and wait for the answer; None if the other end is gone."""
        if not self.say(op, fds, **fields):
            return None
        return self.receive()

    @property
    def gone(self) -> bool:
        """Whether the other end is closed and has left nothing to receive."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close this end; may be called again."""
        self._forget()
        with contextlib.suppress(OSError):
            self._socket.close()


def _packets(data: bytes, fds: Sequence[int]) -> Iterator[tuple[bytes, Sequence[int]]]:
    """Cut a message into packets and their descriptors."""
    if len(data) <= PACKET_BYTES and len(fds) <= PACKET_DESCRIPTORS:
        yield data, fds
        return
    room = PACKET_BYTES - 1
    count = max(-(-len(data) // room), -(-len(fds) // PACKET_DESCRIPTORS))
    for number in range(count):
        mark = _MORE if number + 1 < count else _LAST
        first = number * PACKET_DESCRIPTORS
        part = data[number * room : (number + 1) * room]
        yield mark + part, fds[first : first + PACKET_DESCRIPTORS]
