"""The socket of the confidential data hub, as far as images go: what a Kata agent calls in a guest.

``api.ImagePullService/PullImage`` puts an image into a bundle, ``api.GetResourceService/
GetResource`` returns what the broker has.  Other services are answered as not implemented.
Source: guest-components, the protocol files of the confidential data hub.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from lamina.errors import Error, FetchError, FormatError, NotFoundError, TrustError, UsageError
from lamina.wire import ttrpc
from lamina.wire.ttrpc import Code

LOG: Final = logging.getLogger("lamina")

MAX_CONNECTIONS: Final = 16
MAX_CALLS: Final = 8
"""Calls of one connection that are under way at once."""
_PAUSE_S: Final = 0.2
_CODES: Final[tuple[tuple[type[Error], Code], ...]] = (
    (UsageError, Code.INVALID_ARGUMENT),
    (FormatError, Code.INVALID_ARGUMENT),
    (NotFoundError, Code.NOT_FOUND),
    (TrustError, Code.PERMISSION_DENIED),
    (FetchError, Code.UNAVAILABLE),
)

Handler = Callable[[bytes], bytes]
"""Takes the message of a request, and returns that of its answer."""


class HubServer:
    """Answers calls on a listening socket, which it owns.  A thread a connection, one a call."""

    def __init__(
        self, listening: socket.socket, handlers: Mapping[tuple[str, str], Handler]
    ) -> None:
        """*handlers* are by service and method."""
        self._listening = listening
        self._handlers = handlers
        self._is_closed = False
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Serve until :meth:`close`."""
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError as error:
                if self._is_closed:
                    return
                # As without descriptors: not again at once, but the agent has nobody else to ask.
                LOG.warning("an agent cannot be answered: %s", error.strerror)
                time.sleep(_PAUSE_S)
                continue
            with self._lock:
                if len(self._connections) >= MAX_CONNECTIONS:
                    sock.close()
                    continue
                self._connections.add(sock)
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                thread = threading.Thread(target=self._serve, args=(sock,), name="lamina-hub")
                self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Stop listening, cut clients off, and wait for what they began."""
        self._is_closed = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            connections, threads = list(self._connections), self._threads
        for each in connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _serve(self, sock: socket.socket) -> None:
        calls = threading.BoundedSemaphore(MAX_CALLS)
        sending = threading.Lock()
        threads: list[threading.Thread] = []
        try:
            with suppress(OSError, FormatError):
                while (found := _receive(sock)) is not None:
                    calls.acquire()
                    threads = [thread for thread in threads if thread.is_alive()]
                    answering = (sock, sending, calls, *found)
                    thread = threading.Thread(target=self._answer, args=answering)
                    threads.append(thread)
                    thread.start()
        finally:
            for thread in threads:
                thread.join()
            with self._lock:
                self._connections.discard(sock)
            sock.close()

    def _answer(
        self,
        sock: socket.socket,
        sending: threading.Lock,
        calls: threading.BoundedSemaphore,
        stream: int,
        data: bytes,
    ) -> None:
        try:
            body = ttrpc.encode_message(stream, self._called(data))
            with sending, suppress(OSError):
                sock.sendall(body)
        finally:
            calls.release()

    def _called(self, data: bytes) -> bytes:
        try:
            call = ttrpc.parse_call(data)
            handler = self._handlers.get((call.service, call.method))
            if handler is None:
                told = f"{call.service[:100]}/{call.method[:100]} is not served here"
                return ttrpc.encode_response(b"", Code.UNIMPLEMENTED, told)
            return ttrpc.encode_response(handler(call.payload))
        except Error as error:
            LOG.warning("%s", error)
            code = next((code for kind, code in _CODES if isinstance(error, kind)), Code.INTERNAL)
            return ttrpc.encode_response(b"", code, str(error))
        except Exception:
            # Whoever called would wait for ever.
            LOG.exception("a call failed by a defect")
            return ttrpc.encode_response(b"", Code.INTERNAL, "the hub has a problem of its own")


def _receive(sock: socket.socket) -> tuple[int, bytes] | None:
    """Return the stream and the body of the next request; None at the end of the connection.

    Raises FormatError for what is none, OSError.
    """
    head = _exactly(sock, ttrpc.HEADER.size)
    if head is None:
        return None
    size, stream, kind, _ = ttrpc.HEADER.unpack(head)
    if size > ttrpc.MAX_MESSAGE_BYTES or kind != ttrpc.REQUEST:
        raise FormatError("a client sends what is no request of ttrpc")
    body = _exactly(sock, size)
    return None if body is None else (stream, body)


def _exactly(sock: socket.socket, size_bytes: int) -> bytes | None:
    found = bytearray()
    while len(found) < size_bytes:
        part = sock.recv(min(size_bytes - len(found), 1 << 16))
        if not part:
            return None
        found += part
    return bytes(found)
