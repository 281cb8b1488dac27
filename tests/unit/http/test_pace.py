"""The least speed of transfers: what a registry claims has no part in how long it is waited for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from tests.support import fake_registry as fake
from tests.unit.registry.images import noise

from lamina.errors import FetchError
from lamina.http.client_options import ClientOptions
from lamina.http.http1 import Connection
from lamina.http.pace import LEAST_BYTES_PER_S, Pace, TooSlowError
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.client import RegistryRepository


def test_waiting_spends_time_and_bytes_earn_it() -> None:
    pace = Pace(60)
    for _ in range(1000):
        pace.count(30, 30 * LEAST_BYTES_PER_S)
        pace.check()
    pace.count(59, 0)
    pace.check()
    pace.count(1, 1)
    pace.check()
    pace.count(1, 0)
    with pytest.raises(TooSlowError, match="less than 8 KiB/s over 60 seconds"):
        pace.check()


def test_a_burst_earns_no_more_than_a_minute() -> None:
    pace = Pace(60)
    pace.count(0, 1 << 40)
    pace.count(60, 0)
    with pytest.raises(TooSlowError):
        pace.check()


class Clock:
    """The time of day of a test, which waits move on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("lamina.http.http1.time", clock)
    return clock


class SlowSocket:
    """Takes or gives a few bytes a second on a clock of its own."""

    def __init__(self, clock: Clock, head: bytes, bytes_per_s: int) -> None:
        self.clock = clock
        self.head = head
        self.bytes_per_s = bytes_per_s
        self.moved_bytes = 0
        self.timeout_s: float | None = None
        self.file, self.other = socket.socketpair()

    def fileno(self) -> int:
        return self.file.fileno()

    def gettimeout(self) -> float | None:
        return self.timeout_s

    def settimeout(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    def send(self, data: memoryview) -> int:
        if bytes(data[:4]) in (b"GET ", b"PUT "):
            return len(data)
        self.clock.now_s += 1
        size = min(self.bytes_per_s, len(data))
        self.moved_bytes += size
        return size

    def sendall(self, data: memoryview) -> None:
        """As a TLS socket does it: the timeout is one for each record."""
        while data:
            data = data[self.send(data) :]

    def recv_into(self, buffer: memoryview) -> int:
        if self.head:
            size = min(len(self.head), len(buffer))
            buffer[:size], self.head = self.head[:size], self.head[size:]
            return size
        self.clock.now_s += 1
        size = min(self.bytes_per_s, len(buffer))
        buffer[:size] = bytes(size)
        self.moved_bytes += size
        return size

    def close(self) -> None:
        self.file.close()
        self.other.close()


FOREVER_S = 1e9


@contextlib.contextmanager
def slow(clock: Clock, bytes_per_s: int, head: bytes = b"") -> Iterator[SlowSocket]:
    sock = SlowSocket(clock, head, bytes_per_s)
    try:
        yield sock
    finally:
        sock.close()


@pytest.mark.parametrize("size", [1 << 20, 1 << 40])
def test_an_answer_that_trickles_ends_after_a_minute(clock: Clock, size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    with slow(clock, 1000, head) as sock:
        connection = Connection(sock, 30)  # type: ignore[arg-type]
        connection.send("GET", "/", {}, None, FOREVER_S)
        response = connection.receive(FOREVER_S)
        with pytest.raises(TooSlowError):
            response.read(1 << 20)
        assert 60 <= clock.now_s <= 70
    connection.close()


def test_an_answer_that_keeps_the_least_speed_goes_on(clock: Clock) -> None:
    size = 8 << 20
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    with slow(clock, LEAST_BYTES_PER_S, head) as sock:
        connection = Connection(sock, 30)  # type: ignore[arg-type]
        connection.send("GET", "/", {}, None, FOREVER_S)
        assert len(connection.receive(FOREVER_S).read(size)) == size
        assert clock.now_s >= 1000
    connection.close()


def test_a_body_that_is_taken_too_slowly_ends_after_a_minute(clock: Clock) -> None:
    with slow(clock, 500) as sock:
        connection = Connection(sock, 30)  # type: ignore[arg-type]
        with pytest.raises(TooSlowError):
            connection.send("PUT", "/", {}, bytes(1 << 20), FOREVER_S)
        assert 60 <= clock.now_s <= 70
    connection.close()


def test_a_claimed_size_buys_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that has 2^40 bytes, it says, and sends one now and then, does so for a moment."""
    monkeypatch.setattr("lamina.http.http1.Pace", lambda: Pace(0.5))
    sent = 0

    def trickle(exchange: fake.Exchange) -> bool:
        nonlocal sent
        with contextlib.suppress(OSError):
            exchange.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n")
            for _ in range(5000):
                exchange.wfile.write(b"x")
                sent += 1
                threading.Event().wait(0.02)
        return exchange.reset()

    with fake.fake_registry() as registry:
        registry.rule("GET", "/blobs/", trickle, 99)
        options = ClientOptions(timeout_s=2, deadline_s=0.5, attempts=2)
        reference = parse_reference(f"docker://{registry.host}/a")
        huge = m.Descriptor(media_type=m.OCI_LAYER, digest="sha256:" + "0" * 64, size=1 << 40)
        with (
            RegistryRepository(reference, options) as repository,
            pytest.raises(FetchError, match=r"too slow|in time"),
            repository.open_blob(huge) as stream,
        ):
            stream.read(4096)
    assert sent < 5000, "it ends long before the registry does"


def test_breaking_off_again_and_again_buys_no_time() -> None:
    """Each connection brings a byte; none of them is slow, but all together are."""
    blob = noise(300_000)
    with fake.fake_registry() as registry:
        registry.add_blob(blob)
        registry.rule("GET", "/blobs/", fake.cut_after(1), 100_000)
        options = ClientOptions(timeout_s=2, deadline_s=0.5, attempts=1_000_000)
        reference = parse_reference(f"docker://{registry.host}/a")
        with (
            RegistryRepository(reference, options) as repository,
            pytest.raises(FetchError),
            repository.open_blob(m.describe("", blob)) as stream,
        ):
            stream.read()
        assert registry.count("GET", "/blobs/") < 5000
