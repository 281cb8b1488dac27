"""Calls by ttrpc, put together by hand from its description."""

from __future__ import annotations

import socket
import struct
from pathlib import Path


def field(number: int, data: bytes) -> bytes:
    """A field of bytes of at most 127."""
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


class TtrpcClient:
    """A client on one connection."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(str(path))
        self._stream = -1

    def send(self, service: str, method: str, payload: bytes) -> int:
        self._stream += 2
        body = field(1, service.encode()) + field(2, method.encode())
        # A timeout and metadata, which a server may ignore.
        long = b"\x1a" + bytes([len(payload) & 0x7F | 0x80, len(payload) >> 7]) + payload
        body += long + b"\x20\x80\x94\xeb\xdc\x03" + field(5, field(1, b"k") + field(2, b"v"))
        self.sock.sendall(struct.pack(">IIBB", len(body), self._stream, 1, 1) + body)
        return self._stream

    def receive(self) -> tuple[int, bytes]:
        head = self._exactly(10)
        size, stream, kind, _ = struct.unpack(">IIBB", head)
        assert kind == 2
        return stream, self._exactly(size)

    def call(self, service: str, method: str, payload: bytes) -> bytes:
        stream = self.send(service, method, payload)
        answered, body = self.receive()
        assert answered == stream
        return body

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.sock.recv(size - len(found))
            assert part, "the server hung up"
            found += part
        return found

    def close(self) -> None:
        self.sock.close()
