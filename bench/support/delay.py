"""A TCP proxy that delivers every byte later: a round trip time for kernels without netem.

``python delay.py LISTEN_PORT TARGET_PORT RTT_MS`` listens on all addresses of its host and forwards
to loopback.  Each direction is late by half of the round trip time; the opening of a connection by
a whole one, as a handshake would be. Bandwidth is not limited here, and slow start is not imitated.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time

PIECE_BYTES = 64 << 10
QUEUED_PIECES = 256
"""Bound on what one direction holds: 16 MiB, far above rate x delay of a slow link."""


def main() -> None:
    """Serve until the process is ended."""
    listen_port, target_port, rtt_ms = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with socket.create_server(("", listen_port), backlog=128) as server:
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            arguments = (client, target_port, rtt_ms / 1000)
            threading.Thread(target=forward, args=arguments, daemon=True).start()


def forward(client: socket.socket, target_port: int, rtt_s: float) -> None:
    """Carry one connection until both directions have ended."""
    time.sleep(rtt_s)
    with client, socket.create_connection(("127.0.0.1", target_port)) as target:
        for end in (client, target):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threads = [
            threading.Thread(target=carry, args=(source, sink, rtt_s / 2), daemon=True)
            for source, sink in ((client, target), (target, client))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def carry(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
    """Read from one socket and write to the other, each piece ``delay_s`` after it came."""
    pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(QUEUED_PIECES)
    writer = threading.Thread(target=_deliver, args=(pieces, sink), daemon=True)
    writer.start()
    data = b"?"
    while data:
        try:
            data = source.recv(PIECE_BYTES)
        except OSError:
            data = b""
        pieces.put((time.monotonic() + delay_s, data))
    writer.join()


def _deliver(pieces: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
    broken = False
    while True:
        due_s, data = pieces.get()
        if not data:
            break
        if not broken:
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                sink.sendall(data)
            except OSError:
                broken = True
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
