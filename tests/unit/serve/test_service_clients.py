"""What a client hears when the worker is replaced while it waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from lamina.linux.mount import SuperblockWatch
from lamina.serve.service import clients
from lamina.serve.service.channel import Channel, Message
from lamina.serve.service.clients import MOST_ATTEMPTS, Client
from lamina.serve.service.spec import MountSpec
from lamina.serve.service.supervisor import Supervisor


class Told:
    """A supervisor that notes what a client has it do."""

    def __init__(self) -> None:
        self.worker: list[tuple[str, dict[str, Any]]] = []
        self.parted = False

    def tell_worker(self, op: str, fds: object = None, **fields: object) -> None:
        self.worker.append((op, fields))

    def pids(self) -> dict[str, int]:
        return {}

    def part_with(self, client: Client) -> None:
        self.parted = True
        client.channel.close()


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def opening(ends: tuple[Channel, Channel]) -> tuple[Client, Told, Channel]:
    """A client that has asked for an image."""
    ours, theirs = ends
    told = Told()
    client = Client(cast("Supervisor", told), theirs, "1-1")
    spec = MountSpec(reference="oci:x", mountpoint="/mnt", store="/store", device="fuse-blob")
    ours.say("open", spec=spec.to_json())
    client.read()
    return client, told, ours


def test_a_new_worker_is_asked_again(ends: tuple[Channel, Channel]) -> None:
    client, told, ours = opening(ends)
    for _ in range(MOST_ATTEMPTS - 1):
        client.begin_again()
    assert [op for op, _ in told.worker] == ["open"] * MOST_ATTEMPTS
    client.begin_again()
    failed = ours.receive()
    assert failed is not None
    assert failed.body["op"] == "failed"
    assert told.parted


def test_what_the_last_worker_held_is_mounted_anew(ends: tuple[Channel, Channel]) -> None:
    """The new worker has not opened the image, so it would never answer."""
    client, told, ours = opening(ends)
    ours.say("held", watch=[])
    client.read()
    assert told.worker[-1][0] == "held"
    client.begin_again()
    assert ours.receive() is None
    assert told.parted


def test_a_service_that_could_not_tell_the_end_of_a_fanotify_mount_refuses_it(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mount namespace may lack a sysfs that the client's has."""
    client, told, ours = opening(ends)
    monkeypatch.setattr(clients, "SuperblockWatch", lambda _: SuperblockWatch("erofs", "/nowhere"))
    client.hear(Message({"op": "opened", "number": "1-1", "pinned": None}, []))
    group, other = os.pipe()
    ours.say("serve", [other], device="fanotify", names=["group"], connection=0)
    os.close(other)
    client.read()
    answers = [ours.receive(), ours.receive()]
    assert [answer.body["op"] for answer in answers if answer] == ["opened", "failed"]
    assert "when a mount has ended" in cast("Message", answers[1]).body["error"]
    assert told.parted
    assert os.read(group, 1) == b"", "what came along is closed"
    os.close(group)


def test_an_answer_that_cannot_be_sent_is_the_end_of_its_client_only() -> None:
    """The supervisor, whose one thread this is, has others to hear."""
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    client, told, channel = opening((Channel(ours), Channel(end)))
    client.hear(Message({"op": "status", "mounts": {"/m" * 60_000: {}}}, []))
    assert told.parted
    assert channel.receive() is None
    channel.close()


def test_an_error_that_cannot_be_sent_is_the_end_of_its_client_only() -> None:
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    client, told, channel = opening((Channel(ours), Channel(end)))
    channel.say("x" * 100_000)
    client.read()
    assert told.parted
    channel.close()


@pytest.mark.parametrize("op", ["serve", "mounted"])
def test_requests_out_of_order_end_their_client_only(
    op: str, ends: tuple[Channel, Channel]
) -> None:
    client, told, ours = opening(ends)
    ours.say(op, device="fuse", names=[], connection=0, record={}, watch=[])
    client.read()
    failed = ours.receive()
    assert failed is not None
    assert failed.body["op"] == "failed"
    assert told.parted
