"""The server of a disk over NBD: a thread that accepts, and one for each client."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Final, Self

from lamina.serve.nbd.connection import Connection, Served

MAX_CONNECTIONS: Final = 64
SEND_BUFFER_BYTES: Final = 1 << 20


class NbdServer:
    """Serves one disk on one socket, which it owns; the disk stays the caller's."""

    def __init__(self, listening: socket.socket, served: Served) -> None:
        self._listening = listening
        self._served = served
        self._ended = threading.Event()
        self._wake_receive, self._wake_send = socket.socketpair()
        self._lock = threading.Lock()
        self._clients: dict[Connection, threading.Thread] = {}
        self._thread = threading.Thread(target=self._accept_all, name="lamina-nbd")

    @property
    def port(self) -> int:
        """The port, of TCP."""
        return int(self._listening.getsockname()[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Cut clients off, and return when their threads are done; may be called again."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._wake_send.send(b"x")
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            clients = dict(self._clients)
        for connection in clients:
            connection.end()
        for thread in clients.values():
            thread.join()
        for each in (self._listening, self._wake_receive, self._wake_send):
            each.close()

    def _accept_all(self) -> None:
        self._listening.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            selector.register(self._wake_receive, selectors.EVENT_READ)
            while not self._ended.is_set():
                selector.select()
                with contextlib.suppress(OSError):
                    self._accept(self._listening.accept()[0])

    def _accept(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        with self._lock:
            if len(self._clients) >= MAX_CONNECTIONS or self._ended.is_set():
                sock.close()
                return
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # A whole reply fits: the client reads while the next one is made.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection = Connection(sock, self._served)
            thread = threading.Thread(
                target=self._run, args=(connection,), name="lamina-nbd-client"
            )
            self._clients[connection] = thread
        thread.start()

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                self._clients.pop(connection, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
