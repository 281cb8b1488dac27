"""Connections to names: what resolves them has no deadline of its own."""

from __future__ import annotations

import math
import socket
import threading
import time
from typing import Any

import pytest

from lamina.errors import FetchError
from lamina.http.client_options import ClientOptions
from lamina.http.connect import connect
from lamina.http.transport import Pool
from lamina.http.url import parse_url

RESOLVE = socket.getaddrinfo


def test_a_name_is_resolved_and_connected() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connect("localhost", server.getsockname()[1], 60, time.monotonic() + 60) as sock,
    ):
        assert sock.getpeername() == server.getsockname()


def test_silent_name_servers_are_waited_for_until_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = threading.Event()

    def silent(host: str, *args: Any, flags: int = 0, **options: Any) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            assert answer.wait(60)
        return RESOLVE(host, *args, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    pool = Pool(ClientOptions(), through_proxies=False)
    url = parse_url("http://registry.invalid/v2/")
    with pytest.raises(FetchError, match="cannot be resolved: no name server answered in time"):
        pool.request("GET", url, {}, None, time.monotonic() + 0.05)
    answer.set()
    pool.close()


def test_addresses_need_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def numeric(*args: Any, flags: int = 0, **options: Any) -> Any:
        assert flags & socket.AI_NUMERICHOST
        return RESOLVE(*args, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", numeric)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect("127.0.0.1", server.getsockname()[1], 60, math.inf).close()


def test_names_that_are_not_there() -> None:
    with pytest.raises(socket.gaierror):
        connect("nowhere.invalid", 80, 60, time.monotonic() + 60)
