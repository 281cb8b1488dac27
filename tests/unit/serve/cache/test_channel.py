"""Many connections over one stream: everything arrives, nobody holds up another, and what is no
frame ends it.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from tests.support.fake_registry import FakeRegistry, fake_registry
from tests.unit.registry.images import noise

from lamina.errors import FormatError
from lamina.http.client_options import ClientOptions
from lamina.serve.cache import channel as module
from lamina.serve.cache.blob_cache import BlobCache
from lamina.serve.cache.channel import (
    CLOSE,
    DATA,
    HEADER,
    MAX_CONNECTIONS,
    MAX_DATA_BYTES,
    OPEN,
    RESET,
    WINDOW_BYTES,
    Channel,
)
from lamina.serve.cache.channels import ChannelServer, SocketStream
from lamina.serve.cache.server import CacheServer
from lamina.serve.cache.upstream import Upstream
from lamina.serve.nbd.listening import listen_tcp, listen_unix
from lamina.store.node import NodeStore


class Guest:
    """The guest's end of a channel."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self.channel = Channel(SocketStream(stream))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            self.channel.run()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        self.channel.connect(theirs)
        return ours

    def close(self) -> None:
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.channel.join()
        self._stream.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Guest]]:
    """A guest whose connections are taken as is said."""
    guests: list[Guest] = []
    servers: list[ChannelServer] = []

    def begin(accept: Callable[[socket.socket], None]) -> Guest:
        path = str(tmp_path / "channel.sock")
        servers.append(ChannelServer(listen_unix(path), accept))
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(path)
        guests.append(Guest(stream))
        return guests[0]

    yield begin
    for each in guests:
        each.close()
    for server in servers:
        server.close()


def received(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def echo(sock: socket.socket) -> None:
    def work() -> None:
        with sock:
            sock.sendall(received(sock))
            sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=work).start()


def test_connections_carry_everything_both_ways(
    serve: Callable[[Callable[[socket.socket], None]], Guest],
) -> None:
    guest = serve(echo)
    sent = [noise(size, size) for size in (1, MAX_DATA_BYTES, WINDOW_BYTES + 1, 1_000_000)]
    found: dict[int, bytes] = {}

    def ask(data: bytes) -> None:
        with guest.connect() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            found[len(data)] = received(sock)

    threads = [threading.Thread(target=ask, args=(data,)) for data in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {len(data): data for data in sent}


def test_who_does_not_read_holds_up_nobody(
    serve: Callable[[Callable[[socket.socket], None]], Guest],
) -> None:
    data = noise(4 * WINDOW_BYTES, 1)

    def send(sock: socket.socket) -> None:
        def work() -> None:
            with sock, suppress(OSError):
                sock.sendall(data)

        threading.Thread(target=work).start()

    guest = serve(send)
    with guest.connect() as slow:
        with guest.connect() as quick:
            assert received(quick) == data
        assert slow.recv(1, socket.MSG_PEEK) == data[:1]
        # Then it reads after all.
        assert received(slow) == data
    # One that goes away in the middle is over on the other side too.
    with guest.connect() as gone:
        assert gone.recv(1) == data[:1]
    with guest.connect() as last:
        assert received(last) == data


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(1, 9, 0),
        HEADER.pack(1, DATA, 0),
        HEADER.pack(1, DATA, MAX_DATA_BYTES + 1),
        HEADER.pack(1, OPEN, 0) * 2,
        HEADER.pack(1, OPEN, 0)
        + b"".join(HEADER.pack(1, DATA, MAX_DATA_BYTES) + bytes(MAX_DATA_BYTES) for _ in range(99)),
        os.urandom(4) + b"\xff" + os.urandom(100),
    ],
)
def test_what_is_no_frame_ends_the_channel(frame: bytes) -> None:
    taken: list[socket.socket] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(SocketStream(theirs), taken.append)

        def send() -> None:
            with suppress(OSError):
                ours.sendall(frame)
                ours.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        with pytest.raises(FormatError):
            channel.run()
        theirs.shutdown(socket.SHUT_RD)
        channel.join()
        for sock in taken:
            sock.close()
        thread.join()


def test_a_host_opens_no_connection_in_a_guest() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(HEADER.pack(1, OPEN, 0))
        with pytest.raises(FormatError, match="wrong side"):
            Channel(SocketStream(theirs)).run()


def frames(sock: socket.socket, count: int) -> list[tuple[int, int]]:
    """The next frames, none of which has data: connection and kind."""
    found = []
    for _ in range(count):
        number, kind, size = HEADER.unpack(sock.recv(HEADER.size, socket.MSG_WAITALL))
        assert not size
        found.append((number, kind))
    return found


def test_guests_that_end_no_connection_have_so_many_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever took them has ended them at once, as the cache does when it has enough."""
    monkeypatch.setattr(module, "LINGER_S", 3600)
    path = str(tmp_path / "channel.sock")
    with (
        ChannelServer(listen_unix(path), socket.socket.close),
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        for guest in (one, two):
            guest.settimeout(300)
            guest.connect(path)
        numbers = range(1, MAX_CONNECTIONS + 1)
        one.sendall(b"".join(HEADER.pack(number, OPEN, 0) for number in numbers))
        assert sorted(frames(one, MAX_CONNECTIONS)) == [(number, CLOSE) for number in numbers]
        two.sendall(HEADER.pack(1, OPEN, 0))
        assert frames(two, 1) == [(1, RESET)]


def test_a_connection_whose_taker_has_ended_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    path = str(tmp_path / "channel.sock")
    with (
        ChannelServer(listen_unix(path), socket.socket.close),
        socket.socket(socket.AF_UNIX) as guest,
    ):
        guest.settimeout(300)
        guest.connect(path)
        guest.sendall(HEADER.pack(1, OPEN, 0))
        assert frames(guest, 2) == [(1, CLOSE), (1, RESET)]


def test_a_connection_for_which_there_is_no_thread_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        started.append(thread)
        raise RuntimeError("can't start new thread")

    free = threading.Semaphore(1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(HEADER.pack(1, OPEN, 0))
        ours.shutdown(socket.SHUT_WR)
        channel = Channel(SocketStream(theirs), socket.socket.close, free)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            channel.run()
    assert len(started) == 2 and free.acquire(blocking=False)


def test_who_opens_a_connection_may_wait_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's side, whose client has said all that it has to say."""
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    ours, theirs = socket.socketpair()
    with theirs, closing(Guest(ours)) as guest, guest.connect() as sock:
        sock.shutdown(socket.SHUT_WR)
        theirs.settimeout(300)
        assert frames(theirs, 2) == [(1, OPEN), (1, CLOSE)]
        assert not select.select([theirs], [], [], 0.2)[0]
        theirs.sendall(HEADER.pack(1, DATA, 3) + b"yes" + HEADER.pack(1, CLOSE, 0))
        assert received(sock) == b"yes"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as found:
        yield found


def test_the_cache_answers_ranges_over_a_channel(registry: FakeRegistry, tmp_path: Path) -> None:
    data = noise(3_000_000, 5)
    digest = registry.add_blob(data)
    path = str(tmp_path / "channel.sock")
    with (
        Upstream((registry.host,), ClientOptions()) as upstream,
        BlobCache(upstream, NodeStore(tmp_path / "store")) as cache,
        CacheServer(listen_tcp("127.0.0.1", 0), cache) as server,
        ChannelServer(listen_unix(path), server.adopt),
        socket.socket(socket.AF_UNIX) as stream,
    ):
        stream.connect(path)
        with closing(Guest(stream)) as guest:
            for start in (0, 1_000_000):
                with guest.connect() as sock:
                    head = f"GET /v2/team/app/blobs/{digest} HTTP/1.1\r\nConnection: close\r\n"
                    sock.sendall(f"{head}Range: bytes={start}-2999999\r\n\r\n".encode())
                    answer = received(sock)
                told, _, body = answer.partition(b"\r\n\r\n")
                assert b"206" in told.split(b"\r\n")[0] and body == data[start:]
