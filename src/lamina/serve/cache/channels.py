"""Serial ports of guests, each of which carries connections to the cache."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

from lamina.errors import Error
from lamina.serve.cache.channel import MAX_CONNECTIONS, Channel

LOG: Final = logging.getLogger("lamina")

MAX_CHANNELS: Final = 64
_PAUSE_S: Final = 0.2


class SocketStream:
    """A connected socket as what carries frames."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, size_bytes: int, /) -> bytes:
        """Return that many bytes at most; none at the end."""
        return self._sock.recv(size_bytes)

    def write(self, data: bytes, /) -> None:
        """Write all of it."""
        self._sock.sendall(data)


class ChannelServer:
    """Takes channels on a listening socket, which it owns, until it is closed."""

    def __init__(self, listening: socket.socket, accept: Callable[[socket.socket], None]) -> None:
        """*accept* is given each connection that a guest opens, and then owns it; all guests have
        MAX_CONNECTIONS together.
        """
        self._listening = listening
        self._accept = accept
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        self._is_closed = False
        self._lock = threading.Lock()
        self._channels: dict[socket.socket, threading.Thread] = {}
        self._thread = threading.Thread(target=self._run, name="lamina-channels")
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError as error:
                if self._is_closed:
                    return
                LOG.warning("a guest cannot be answered: %s", error.strerror)
                time.sleep(_PAUSE_S)
                continue
            with self._lock:
                if self._is_closed or len(self._channels) >= MAX_CHANNELS:
                    sock.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(sock,), name="lamina-channel")
                self._channels[sock] = thread
            try:
                thread.start()
            except RuntimeError:
                # There are no more to be had.
                with self._lock:
                    del self._channels[sock]
                sock.close()

    def _serve(self, sock: socket.socket) -> None:
        channel = Channel(SocketStream(sock), self._accept, self._free)
        try:
            channel.run()
        except (Error, OSError) as error:
            LOG.debug("the channel of a guest is over: %s", error)
        finally:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            channel.join()
            with self._lock:
                self._channels.pop(sock, None)
            sock.close()

    def close(self) -> None:
        """Stop listening, cut guests off, and wait for what they began."""
        self._is_closed = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        with self._lock:
            channels = dict(self._channels)
        for sock in channels:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in channels.values():
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
