"""The standard streams of a detached container: pipes into its log, or a terminal."""

from __future__ import annotations

import os
import socket
from typing import Final

_READ_BYTES: Final = 64 << 10


class Streams:
    """Descriptors that all who look after a container share.

    The container has the other ends: those are here until it has been made.
    """

    def __init__(self, *, interactive: bool, terminal: bool) -> None:
        self._opened: list[int] = []
        self.stdin = -1
        self.outputs: dict[int, str] = {}
        self.inner: tuple[int, int, int] = (-1, -1, -1)
        # A terminal waits here for who takes a supervisor's place.
        self._spare: tuple[socket.socket, socket.socket] | None = None
        if terminal:
            self._spare = socket.socketpair()
            return
        if interactive:
            inner_in, self.stdin = os.pipe()
        else:
            inner_in = os.open(os.devnull, os.O_RDONLY)
        outer_out, inner_out = os.pipe()
        outer_err, inner_err = os.pipe()
        self.inner = (inner_in, inner_out, inner_err)
        self.outputs = {outer_out: "stdout", outer_err: "stderr"}

    @property
    def is_terminal(self) -> bool:
        """Whether the container has a terminal."""
        return self._spare is not None

    def close_inner(self) -> None:
        """Leave the container's ends to the container."""
        for fd in self.inner:
            if fd >= 0:
                os.close(fd)
        self.inner = (-1, -1, -1)

    def take_terminal(self, listener: socket.socket) -> None:
        """Accept the terminal that the runtime sends, and keep a copy for a successor."""
        assert self._spare is not None
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        socket.send_fds(self._spare[0], [b"t"], fds)
        self.outputs = {fds[0]: "stdout"}

    def inherit(self) -> None:
        """In the successor of a supervisor: take what that left."""
        if self._spare is not None:
            self._spare[1].setblocking(False)
            try:
                _, fds, _, _ = socket.recv_fds(self._spare[1], 16, 1)
            except BlockingIOError:
                return
            self.outputs = dict.fromkeys(fds, "stdout")

    def read(self, fd: int) -> bytes:
        """Return what is there; nothing at the end."""
        try:
            return os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            # A terminal whose last process has ended.
            return b""
