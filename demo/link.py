"""A TCP forwarder that stands for a slow link: it limits the rate towards the client and counts
what it carries.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self

PIECE_BYTES = 16 << 10


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
            for source, sink, limited in ((client, target, False), (target, client, True)):
                threading.Thread(
                    target=self._carry, args=(source, sink, limited), daemon=True
                ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, limited: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if limited:
                    self._wait_for_the_wire(len(data))
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if limited:
            source.close()
            sink.close()

    def _wait_for_the_wire(self, size_bytes: int) -> None:
        with self._lock:
            self._carried_bytes += size_bytes
            now_s = time.monotonic()
            self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_second
            wait_s = self._free_at_s - now_s
        time.sleep(wait_s)
