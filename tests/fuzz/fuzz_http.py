"""HTTP/1.1 answers from any bytes: the first byte chooses the method and how the body is read."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from lamina.errors import Error
from lamina.http.http1 import Connection

_LIMIT = 4096
_MAX_BYTES = 100_000
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def _answering(data: bytes) -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MAX_BYTES)
        theirs.sendall(data[:_MAX_BYTES])
        theirs.shutdown(socket.SHUT_WR)
        connection = Connection(ours, 2)
        yield connection
        connection.close()


def target(data: bytes) -> None:
    """Read a head and a body; only FetchErrors and broken connections may come out."""
    choice = data[0] if data else 0
    deadline = time.monotonic() + 2
    with _answering(data[1:]) as connection, contextlib.suppress(Error, ConnectionError):
        connection.send(("GET", "HEAD", "PUT")[choice % 3], "/", {}, None, deadline)
        response = connection.receive(deadline)
        if choice & 4:
            assert len(response.read_all(_LIMIT, "it")) <= _LIMIT
        elif choice & 8:
            buffer = bytearray(50)
            while got := response.readinto(memoryview(buffer)):
                assert 0 < got <= 50
        else:
            while part := response.read(7):
                assert len(part) <= 7
        response.close()
        assert response.finished


def seeds() -> list[bytes]:
    """Each framing, whole and broken."""
    answers = [
        b"HTTP/1.1 206 OK\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\r\nhello",
        _CHUNKED + b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\nConnection: close\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        _CHUNKED + b"-1\r\nhello",
        _CHUNKED + b"1;" + b"x" * 60_000 + b"\r\na\r\n0\r\n" + b"a: b\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; boundary*0*=a'b'c\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; boundary*0*=a\0'b'c\r\n\r\nhello",
    ]
    return [bytes([choice]) + answer for answer in answers for choice in (0, 1, 4, 8)]
