"""Messages between the processes of the service: JSON objects with descriptors, over sequenced
packets.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

MAX_MESSAGE_BYTES: Final = 160 * 1024
"""Below what Linux lets a socket buffer by default (212992 bytes)."""

MAX_DESCRIPTORS: Final = 250
"""Of one message; the kernel's limit is 253 (SCM_MAX_FD)."""


class Message(NamedTuple):
    """``body["op"]`` says what it is; the descriptors belong to the receiver."""

    body: dict[str, Any]
    fds: list[int]


class Channel:
    """One end of a connection.  One thread receives; any thread sends."""

    def __init__(self, end: socket.socket) -> None:
        """Own ``end`` from now on."""
        self._socket = end

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
        """Send a message.  Raises OSError if the other end is closed, or the message is too
        long.
        """
        data = json.dumps(body).encode()
        if fds:
            socket.send_fds(self._socket, [data], fds)
        else:
            self._socket.send(data)

    def receive(self) -> Message | None:
        """Wait for a message; None when the other end is closed, or says what is no message."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
        except ConnectionError:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            for fd in fds:
                os.close(fd)
            return None
        return Message(body, list(fds))

    def say(self, op: str, fds: Sequence[int] = (), **fields: object) -> bool:
        """Send ``op`` with its fields; return False if nobody is there to receive it."""
        try:
            self.send({"op": op, **fields}, fds)
        except OSError:
            return False
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
        with contextlib.suppress(OSError):
            self._socket.close()
