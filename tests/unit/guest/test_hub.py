"""The socket of the confidential data hub."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from lamina.errors import FormatError, NotFoundError, TrustError
from lamina.guest.hub import HubServer
from lamina.serve.nbd.listening import listen_unix
from lamina.wire import ttrpc
from tests.support.ttrpc_client import TtrpcClient, field

SERVICE = "api.Echo"


class Scarce:
    """A listening socket that has no descriptor to give, the first time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_out = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.is_out:
            self.is_out = False
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def fail(payload: bytes) -> bytes:
    if payload:
        raise TrustError("no policy \udcff")
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def refuse(payload: bytes) -> bytes:
    raise TrustError("not for this guest") if payload else NotFoundError("there is none")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    gate = threading.Event()

    def wait(_: bytes) -> bytes:
        assert gate.wait(60)
        return b"late"

    def opened(_: bytes) -> bytes:
        gate.set()
        return b"open"

    handlers = {"Echo": lambda data: data, "Refuse": refuse, "Wait": wait, "Open": opened}
    handlers["Fail"] = fail
    server = HubServer(
        cast("socket.socket", Scarce(listen_unix(str(tmp_path / "hub.sock")))),
        {(SERVICE, name): handler for name, handler in handlers.items()},
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield tmp_path / "hub.sock"
    finally:
        server.close()
        thread.join()


def test_calls_are_answered_whatever_waits_before_them(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(TtrpcClient(path)) as client:
        assert client.call(SERVICE, "Echo", b"x" * 300) == b"\x12\xac\x02" + b"x" * 300
        waiting = client.send(SERVICE, "Wait", b"")
        first = client.send(SERVICE, "Echo", b"early")
        assert client.receive() == (first, field(2, b"early"))
        opening = client.send(SERVICE, "Open", b"")
        # Either may be sent first now.
        answers = {client.receive(), client.receive()}
        assert answers == {(opening, field(2, b"open")), (waiting, field(2, b"late"))}


def test_errors_have_codes_of_grpc(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A process of the test run cannot send on a log that is not all of characters.
    caplog.set_level(logging.CRITICAL, "lamina")
    with closing(TtrpcClient(path)) as client:
        for method, payload, code, words in (
            ("Refuse", b"1", 7, b"not for this guest"),
            ("Refuse", b"", 5, b"there is none"),
            ("Nothing", b"", 12, b"is not served here"),
            ("Fail", b"", 13, b"a problem of its own"),
            ("Fail", b"1", 7, b"no policy ?"),
        ):
            body = client.call(SERVICE, method, payload)
            assert body[2:4] == bytes([8, code]), body
            assert words in body


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">IIBB", 5 << 20, 1, 1, 0),
        struct.pack(">IIBB", 0, 1, 3, 0),
        struct.pack(">IIBB", 100, 1, 1, 0) + b"x",
    ],
)
def test_what_is_no_request_ends_its_connection_only(path: Path, data: bytes) -> None:
    with closing(TtrpcClient(path)) as other, closing(TtrpcClient(path)) as client:
        client.sock.sendall(data)
        client.sock.shutdown(1)
        assert client.sock.recv(1) == b""
        assert other.call(SERVICE, "Echo", b"y") == field(2, b"y")


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\x0b",
        b"\xff" * 11,
        b"\x0a\x01\xff",
        b"\x08",
        b"\x09abc",
        b"\x08\1" * 5000,
    ],
)
def test_messages_that_are_no_protobuf(data: bytes) -> None:
    with pytest.raises(FormatError):
        ttrpc.parse_call(data)
    with pytest.raises(FormatError):
        ttrpc.texts(data, 1)
