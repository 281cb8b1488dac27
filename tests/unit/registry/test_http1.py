"""HTTP/1.1 answers, read from a socket pair: framing, bounds, hostile servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FetchError
from lamina.registry.http1 import Connection, ProtocolError, Response, request_head


@contextmanager
def answered(data: bytes, method: str = "GET", *, end: bool = True) -> Iterator[Response]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=_send, args=(theirs, data, end))
        thread.start()
        try:
            yield Connection(ours, 5).receive(method, time.monotonic() + 5)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def _send(sock: socket.socket, data: bytes, end: bool) -> None:
    try:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_length() -> None:
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nX-A: b \r\nx-a:c\r\n\r\n"
    with answered(head + b"hello", end=False) as response:
        assert response.status == 206
        assert response.headers["x-a"] == "b, c"
        assert response.length_bytes == 5
        assert response.read(3) == b"hel"
        assert not response.finished
        assert response.read(30) == b"lo"
        assert response.finished
        assert response.reusable
        assert response.read(1) == b""


def test_chunked() -> None:
    body = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"
    with answered(head + body, end=False) as response:
        assert response.length_bytes is None
        assert response.read(5) == b"abc01"
        buffer = bytearray(100)
        assert response.readinto(memoryview(buffer)) == 8
        assert buffer[:8] == b"23456789"
        assert response.read_all(100, "it") == b""
        assert response.finished
        assert response.reusable


def test_until_the_end() -> None:
    with answered(b"HTTP/1.0 200 OK\r\n\r\nall of it") as response:
        assert response.read_all(100, "it") == b"all of it"
        assert not response.reusable


@pytest.mark.parametrize(
    ("head", "method"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "GET"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "PUT"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "GET"),
    ],
)
def test_no_body(head: bytes, method: str) -> None:
    with answered(head, method, end=False) as response:
        assert response.finished
        assert response.reusable
        assert response.read(1) == b""


def test_connection_close() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\nContent-Length: 0\r\n\r\n"
    with answered(head) as response:
        assert not response.reusable


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1  200\r\n\r\n",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000,
        b"HTTP/1.1 " + b"2" * 70_000,
    ],
)
def test_what_is_not_http(data: bytes) -> None:
    with pytest.raises(ProtocolError), answered(data):
        pass


@pytest.mark.parametrize(
    "body",
    [b"\r\n", b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"f" * 16 + b"\r\n", b"1" * 2000, b"1"],
)
def test_broken_chunks(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with answered(head + body) as response, pytest.raises(ProtocolError):
        response.read(10)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
    ],
)
def test_closed_in_the_head(data: bytes) -> None:
    with pytest.raises(ConnectionError), answered(data):
        pass


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("into", [False, True])
def test_closed_in_the_body(framing: bytes, into: bool) -> None:
    body = b"9\r\nabc" if b"chunked" in framing else b"abc"
    with answered(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + body) as response:
        with pytest.raises(ConnectionError):
            while response.readinto(memoryview(bytearray(9))) if into else response.read(9):
                pass
        response.close()
        assert not response.reusable


def test_a_body_over_the_limit() -> None:
    body = b"Content-Length: 100000000000\r\n\r\n" + b"x" * 200_000
    with answered(b"HTTP/1.1 200 OK\r\n" + body) as response:
        with pytest.raises(FetchError, match="it is longer than 1000 bytes"):
            response.read_all(1000, "it")
        assert not response.reusable


def test_a_slow_server_meets_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.02):
                theirs.sendall(b"H")

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        with pytest.raises((TimeoutError, ProtocolError)):
            Connection(ours, 5).receive("GET", started + 0.3)
        assert time.monotonic() - started < 2
        stop.set()
        thread.join()


def test_silence_meets_the_timeout() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        Connection(ours, 0.05).receive("GET", time.monotonic() + 10)


def test_a_small_rest_is_drained_and_a_large_one_is_not() -> None:
    for size, reusable in ((1000, True), (1 << 20, False)):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        with answered(head + bytes(size)) as response:
            response.close()
            assert response.finished
            assert response.reusable is reusable


def test_an_idle_connection_that_was_closed_is_stale() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, 5)
        assert not connection.is_stale()
        theirs.close()
        assert connection.is_stale()


def test_request_head() -> None:
    assert request_head("GET", "/x", {"A": "b"}) == b"GET /x HTTP/1.1\r\nA: b\r\n\r\n"
    for target, value in (("/x\r\nY: z", "b"), ("/x", "b\r\nY: z"), ("/ä", "b"), ("/x", "\0")):
        with pytest.raises(ProtocolError):
            request_head("GET", target, {"A": value})


@given(st.binary(max_size=300), st.sampled_from([b"", b"Transfer-Encoding: chunked\r\n"]))
def test_any_bytes_end_in_data_or_a_clear_error(data: bytes, header: bytes) -> None:
    try:
        with answered(b"HTTP/1.1 200 OK\r\n" + header + data) as response:
            assert len(response.read_all(1000, "it")) <= 1000
    except (FetchError, ConnectionError):
        pass
