"""HTTP/1.1 answers, read from a socket pair: framing, bounds, hostile servers."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FetchError
from lamina.http.http1 import Connection, ProtocolError, Response, check_request


@contextmanager
def answered(data: bytes, method: str = "GET", *, end: bool = True) -> Iterator[Response]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=_send, args=(theirs, data, end))
        thread.start()
        try:
            connection = Connection(ours, 60)
            connection.send(method, "/", {}, None, time.monotonic() + 60)
            yield connection.receive(time.monotonic() + 60)
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
        assert response.length_bytes == 2
        assert response.read(30) == b"lo"
        assert response.finished
        assert response.reusable
        assert response.read(1) == b""


def test_chunked() -> None:
    body = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
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
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000,
        b"HTTP/1.1 " + b"2" * 70_000,
    ],
)
def test_what_is_not_http(data: bytes) -> None:
    with pytest.raises(ProtocolError), answered(data):
        pass


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize(
    "body",
    [b"\r\n", b"x\r\n", b"-1\r\n", b"1\r\nab\r\n", b"f" * 16 + b"\r\n", b"1" * 2000, b"1"],
)
def test_broken_chunks(body: bytes, into: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with answered(head + body) as response, pytest.raises((ProtocolError, ConnectionError)):
        while response.readinto(memoryview(bytearray(9))) if into else response.read(9):
            pass
    assert not response.reusable


def test_a_negative_chunk_does_not_mean_everything() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"
    with answered(head + bytes(1 << 20)) as response:
        tracemalloc.start()
        try:
            with pytest.raises((ProtocolError, ConnectionError)):
                response.read(10)
            assert tracemalloc.get_traced_memory()[1] < 200_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        b"HTTP/1.1 206 OK\r\nContent-Length: 10",
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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_chunks_of_one_byte() -> None:
    with answered(CHUNKED + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n") as response:
        assert response.read_all(200_000, "it") == b"x" * 200_000


@pytest.mark.parametrize(
    "framing",
    [
        b"3\r\nabc\r\n0\r\n" + b"a: b\r\n" * 50_000,
        b"3\r\nabc\r\n0\r\n" + (b"a: " + b"b" * 60_000 + b"\r\n") * 10,
        (b"1;" + b"x" * 60_000 + b"\r\na\r\n") * 10,
        (b"0" * 60_000 + b"1\r\na\r\n") * 10,
    ],
    ids=["trailers", "long trailers", "extensions", "zeros"],
)
@pytest.mark.parametrize("into", [False, True])
def test_what_is_around_the_content_is_bounded(framing: bytes, into: bool) -> None:
    with answered(CHUNKED + framing) as response:
        with pytest.raises(ProtocolError, match="around its content"):
            while response.readinto(memoryview(bytearray(9))) if into else response.read(9):
                pass
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
        connection = Connection(ours, 60)
        connection.send("GET", "/", {}, None, time.monotonic() + 60)
        with pytest.raises(TimeoutError):
            connection.receive(time.monotonic() + 0.3)
        stop.set()
        thread.join()


def test_silence_meets_the_timeout() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, 0.05)
        connection.send("GET", "/", {}, None, time.monotonic() + 60)
        with pytest.raises(TimeoutError):
            connection.receive(time.monotonic() + 60)


def test_a_small_rest_is_drained_and_a_large_one_is_not() -> None:
    for size, reusable in ((1000, True), (1 << 20, False)):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        with answered(head + bytes(size)) as response:
            response.close()
            assert response.finished
            assert response.reusable is reusable


def test_a_rest_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.http.http1._DRAIN_S", 0.0)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with answered(head + b"some", end=False) as response:
        response.close()
        assert response.finished
        assert not response.reusable


def test_an_idle_connection_that_was_closed_is_stale() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, 60)
        assert not connection.is_stale()
        theirs.close()
        assert connection.is_stale()


def sent(method: str, headers: dict[str, str], body: bytes | None) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Connection(ours, 60).send(method, "/x?y", headers, body, time.monotonic() + 60)
        ours.shutdown(socket.SHUT_WR)
        return theirs.makefile("rb").read()


def test_requests() -> None:
    assert (
        sent("GET", {"Host": "h", "A": "b"}, None)
        == b"GET /x?y HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n"
    )
    assert sent("PUT", {}, b"z") == b"PUT /x?y HTTP/1.1\r\nContent-Length: 1\r\n\r\nz"
    assert sent("POST", {}, b"") == b"POST /x?y HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "value"),
    [("/x\r\nY: z", "b"), ("/x y", "b"), ("/x", "secret\r\nY: z"), ("/ä", "b"), ("/x", "\0")],
)
def test_requests_that_cannot_be_sent(target: str, value: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_request(target, {"A": value})
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=300), st.sampled_from([b"", b"Transfer-Encoding: chunked\r\n"]))
def test_any_bytes_end_in_data_or_a_clear_error(data: bytes, header: bytes) -> None:
    try:
        with answered(b"HTTP/1.1 200 OK\r\n" + header + data) as response:
            assert len(response.read_all(1000, "it")) <= 1000
    except (FetchError, ConnectionError):
        pass
