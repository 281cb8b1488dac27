"""A TCP forwarder that stands for a slow link: it limits the rate towards the client, counts what
it carries, and notes what was asked for.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import Self

PIECE_BYTES = 16 << 10
_REQUEST = re.compile(rb"^GET (\S+) HTTP/1\.1\r$", re.MULTILINE)


@dataclass(slots=True)
class Request:
    """What a client asked for: seconds from the first request of all, and bytes that came."""

    path: str
    begin_s: float
    end_s: float
    received_bytes: int = 0


class SlowLink:
    """Listens on a free port of 127.0.0.1 and forwards to a port there; all connections share the
    rate.
    """

    def __init__(self, target_port: int, bytes_per_second: float) -> None:
        self._target_port = target_port
        self._bytes_per_second = bytes_per_second
        self._server = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._free_at_s = 0.0
        self._carried_bytes = 0
        self._requests: list[Request] = []
        self._begin_s = time.monotonic()
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown wakes the thread in accept(), which close alone does not.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    @property
    def carried_bytes(self) -> int:
        """Bytes delivered to clients so far."""
        return self._carried_bytes

    def begin(self) -> None:
        """Note requests from now on, and count their seconds from here."""
        with self._lock:
            self._requests = []
            self._begin_s = time.monotonic()

    @property
    def requests(self) -> list[Request]:
        """What was asked for since :meth:`begin`, in that order."""
        with self._lock:
            return list(self._requests)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            target = socket.create_connection(("127.0.0.1", self._target_port))
            # Else a head and a body sent one after the other wait 40 ms for an acknowledgement.
            for end in (client, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked: list[Request] = []
            for source, sink, limited in ((client, target, False), (target, client, True)):
                threading.Thread(
                    target=self._carry, args=(source, sink, limited, asked), daemon=True
                ).start()

    def _carry(
        self, source: socket.socket, sink: socket.socket, limited: bool, asked: list[Request]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if limited:
                    self._wait_for_the_wire(len(data))
                    self._note_answer(asked, len(data))
                else:
                    self._note_requests(asked, data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if limited:
            source.close()
            sink.close()

    def _note_requests(self, asked: list[Request], data: bytes) -> None:
        now_s = time.monotonic()
        for found in _REQUEST.finditer(data):
            with self._lock:
                own_s = now_s - self._begin_s
                asked.append(Request(found[1].decode("latin-1"), own_s, own_s))
                self._requests.append(asked[-1])

    def _note_answer(self, asked: list[Request], size_bytes: int) -> None:
        if asked:
            asked[-1].received_bytes += size_bytes
            asked[-1].end_s = time.monotonic() - self._begin_s

    def _wait_for_the_wire(self, size_bytes: int) -> None:
        with self._lock:
            self._carried_bytes += size_bytes
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_second
            wait_s = self._free_at_s - now_s
        time.sleep(wait_s)
