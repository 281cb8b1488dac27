"""HTTP/1.1 answers from any bytes: the first byte chooses the method and how the body is read."""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from lamina.errors import Error
from lamina.registry.http1 import Response, read_head

_LIMIT = 4096


class _Source(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        view = memoryview(buffer)[:100]
        return self._source.readinto(view)


def target(data: bytes) -> None:
    """Read a head and a body; only FetchErrors and broken connections may come out."""
    choice = data[0] if data else 0
    reader = cast("BinaryIO", io.BufferedReader(_Source(data[1:]), 64))
    try:
        head = read_head(reader)
        response = Response(head, ("GET", "HEAD", "PUT")[choice % 3], reader, None)
        if choice & 4:
            assert len(response.read_all(_LIMIT, "it")) <= _LIMIT
        elif choice & 8:
            buffer = bytearray(50)
            while got := response.readinto(memoryview(buffer)):
                assert 0 < got <= 50
        else:
            while part := response.read(7):
                assert len(part) <= 7
        assert response.finished
    except (Error, ConnectionError):
        return


def seeds() -> list[bytes]:
    """Each framing, whole and broken."""
    answers = [
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\nConnection: close\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    ]
    return [bytes([choice]) + answer for answer in answers for choice in (0, 1, 4, 8)]
