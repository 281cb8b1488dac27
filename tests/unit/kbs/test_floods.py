"""A broker that is flooded: nobody's sessions, connections or places are taken by another."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import threading
from typing import Any

import pytest
from tests.support.key_broker import RunningBroker
from tests.unit.kbs.test_broker import KEY, RESOURCE, URI, Guest

from lamina.kbs import server as server_module
from lamina.kbs.client_group import client_group
from lamina.kbs.rules import Attested
from lamina.kbs.sessions import Sessions


@pytest.fixture
def broker(running: RunningBroker) -> RunningBroker:
    running.put(URI, KEY)
    return running


@pytest.fixture
def guest(broker: RunningBroker) -> Guest:
    return Guest(broker)


def test_challenges_cost_nobody_a_session(
    guest: Guest, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.kbs.sessions.MAX_SESSIONS", 3)
    assert guest.attest(guest.challenge()).status == 200
    flood, waiting = Guest(broker), Guest(broker)
    flood.address, waiting.address = "192.0.2.1", "192.0.2.2"
    nonce = waiting.challenge()
    for _ in range(50):
        flood.challenge()
    assert len(guest.broker.sessions._open) <= 3
    assert guest.ask("GET", "/resource/tenant/image-kek/7").status == 200
    assert waiting.attest(nonce).status == 200, "the flood made room for itself"


def test_attestations_of_one_client_cost_no_other_its_session(guest: Guest) -> None:
    sessions = Sessions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamina.kbs.sessions.MAX_SESSIONS", 3)
        kept = sessions.begin("sample", "sha384", "192.0.2.1")
        sessions.admit(kept, Attested("sample", "m"), {}, "")
        first = None
        for _ in range(10):
            session = sessions.begin("sample", "sha384", "192.0.2.2")
            sessions.admit(session, Attested("sample", "m"), {}, "")
            first = first or session
    assert first is not None
    assert sessions.find(kept.identifier) is kept
    assert sessions.find(first.identifier) is None
    assert len(sessions._attested) == 3


def test_sessions_that_are_over_make_room_first() -> None:
    now = [0.0]
    sessions = Sessions(10, lambda: now[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamina.kbs.sessions.MAX_SESSIONS", 2)
        old = sessions.begin("sample", "sha384", "b")
        now[0] = 9.0
        kept = sessions.begin("sample", "sha384", "a")
        now[0] = 11.0
        sessions.begin("sample", "sha384", "a")
    assert sessions.find(old.identifier) is None
    assert sessions.find(kept.identifier) is kept


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nothing", "nothing"),
    ],
)
def test_who_counts_as_one(address: str, group: str) -> None:
    assert client_group(address) == group


def test_one_address_does_not_take_all_connections(broker: RunningBroker) -> None:
    port = int(broker.url.rpartition(":")[2])
    with contextlib.ExitStack() as held:
        for _ in range(server_module.MAX_CONNECTIONS_OF_CLIENT + 40):
            held.enter_context(socket.create_connection(("127.0.0.1", port), 60))
        context = ssl.create_default_context(cafile=broker.ca_file)
        # All of them are before this one in the queue of the socket.
        plain = socket.create_connection(("127.0.0.1", port), 60, ("127.0.0.2", 0))
        with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"404" in sock.recv(100)


@pytest.mark.parametrize("failing", ["thread", "descriptor"])
def test_a_connection_that_cannot_be_served_gives_its_place_back(
    failing: str, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoDescriptor(socket.socket):
        def dup(self) -> socket.socket:
            raise OSError(errno.EMFILE, "too many open files")

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def accept(self: server_module.BrokerServer) -> tuple[socket.socket, Any]:
        sock, address = self.socket.accept()
        return NoDescriptor(fileno=sock.detach()), address

    port = int(broker.url.rpartition(":")[2])
    with monkeypatch.context() as patch:
        if failing == "thread":
            patch.setattr(threading.Thread, "start", no_thread)
        else:
            patch.setattr(server_module.BrokerServer, "get_request", accept)
        for _ in range(server_module.MAX_CONNECTIONS_OF_CLIENT + 40):
            with socket.create_connection(("127.0.0.1", port), 60) as sock:
                assert sock.recv(1) == b""
    assert broker.client().fetch(RESOURCE).reveal() == KEY
