"""What a client hears when the worker is replaced while it waits, and when it says odd things."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import cast

import pytest

from lamina.linux.superblock import SuperblockWatch
from lamina.opening.request import OpenRequest
from lamina.serve.error_wire import decode_error
from lamina.serve.mount_records import MountRecord
from lamina.serve.service import clients
from lamina.serve.service.channel import Channel, Received
from lamina.serve.service.clients import MOST_ATTEMPTS, Client
from lamina.serve.service.messages import (
    PROTOCOL,
    Coverage,
    Drain,
    Failed,
    Hello,
    Hold,
    Message,
    Mounted,
    NotUpgraded,
    Open,
    Opened,
    ServeMount,
    Status,
    StatusPage,
    Upgrade,
)
from lamina.serve.service.spec import MountSpec
from lamina.serve.service.supervisor import Supervisor

OPENED = Opened(number="1-1", image="oci:x", digest="", pinned=None, bootstrap="/b")
RECORD = MountRecord(
    image="oci:x", digest="", mountpoint="/mnt", device="fuse", device_number="0:1", pid=0,
    start_ticks=0, store="/store",
)  # fmt: skip


class Told:
    """A supervisor that notes what a client has it do."""

    def __init__(self) -> None:
        self.worker: list[Message] = []
        self.parted = False
        self.upgrades = 0

    def tell_worker(self, message: Message, fds: object = None) -> None:
        self.worker.append(message)

    def pids(self) -> dict[str, int]:
        return {"worker": 7}

    def upgrade(self) -> bool:
        self.upgrades += 1
        return False

    def part_with(self, client: Client) -> None:
        self.parted = True
        client.channel.close()


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    ours.settimeout(30)
    yield ours, theirs
    ours.close()
    theirs.close()


def heard(channel: Channel) -> Message:
    received = channel.receive()
    assert received is not None
    return cast("Received", received).message


def greeted(ends: tuple[Channel, Channel]) -> tuple[Client, Told, Channel]:
    """A client that has said hello."""
    ours, theirs = ends
    told = Told()
    client = Client(cast("Supervisor", told), theirs, "1-1")
    ours.send(Hello())
    client.read()
    assert heard(ours) == Hello()
    return client, told, ours


def opening(ends: tuple[Channel, Channel]) -> tuple[Client, Told, Channel]:
    """A client that has asked for an image."""
    client, told, ours = greeted(ends)
    image = OpenRequest(reference="oci:x", store="/store")
    ours.send(Open(spec=MountSpec(image=image, mountpoint="/mnt", device="fuse-blob")))
    client.read()
    return client, told, ours


def test_a_new_worker_is_asked_again(ends: tuple[Channel, Channel]) -> None:
    client, told, ours = opening(ends)
    for _ in range(MOST_ATTEMPTS - 1):
        client.begin_again()
    assert [type(message) for message in told.worker] == [Open] * MOST_ATTEMPTS
    client.begin_again()
    assert isinstance(heard(ours), Failed)
    assert told.parted


def test_what_the_last_worker_held_is_mounted_anew(ends: tuple[Channel, Channel]) -> None:
    """The new worker has not opened the image, so it would never answer."""
    client, told, ours = opening(ends)
    ours.send(Hold(watch=("/sys/x",)))
    client.read()
    assert told.worker[-1] == Hold(watch=("/sys/x",), number="1-1")
    client.begin_again()
    assert ours.receive() is None
    assert told.parted


def test_a_service_that_could_not_tell_the_end_of_a_fanotify_mount_refuses_it(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mount namespace may lack a sysfs that the client's has."""
    client, told, ours = opening(ends)
    monkeypatch.setattr(clients, "SuperblockWatch", lambda _: SuperblockWatch("erofs", "/nowhere"))
    client.hear(OPENED)
    group, other = os.pipe()
    ours.send(ServeMount(device="fanotify", names=("group",)), [other])
    os.close(other)
    client.read()
    assert heard(ours) == OPENED
    failed = heard(ours)
    assert isinstance(failed, Failed)
    assert "when a mount has ended" in failed.error.message
    assert told.parted
    assert os.read(group, 1) == b"", "what came along is closed"
    os.close(group)


def test_a_client_that_takes_nothing_is_left() -> None:
    """The supervisor, whose one thread this is, has others to hear."""
    ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    channel, theirs = Channel(ours), Channel(end)
    client, told, _ = opening((channel, theirs))
    theirs.settimeout(0.05)
    page = StatusPage(number="1-1", mounts={"/m" * 60_000: Coverage()})
    client.hear(page)
    assert told.parted
    channel.close()


def test_pages_have_the_pids(ends: tuple[Channel, Channel]) -> None:
    client, told, ours = greeted(ends)
    ours.send(Status(mountpoints=("/a",), after="/0"))
    client.read()
    assert told.worker == [Status(mountpoints=("/a",), after="/0", number="1-1")]
    client.begin_again()
    assert told.worker[1:] == told.worker[:1], "a new worker is asked again"
    client.hear(StatusPage(number="1-1", mounts={}, more=True))
    assert heard(ours) == StatusPage(number="1-1", mounts={}, more=True, pids={"worker": 7})
    client.begin_again()
    assert len(told.worker) == 2


@pytest.mark.parametrize(
    "message",
    [ServeMount(device="fuse", names=()), Mounted(record=RECORD, watch=()), Drain()],
    ids=lambda message: type(message).__name__,
)
def test_requests_out_of_order_end_their_client_only(
    message: Message, ends: tuple[Channel, Channel]
) -> None:
    client, told, ours = opening(ends)
    ours.send(message)
    client.read()
    assert isinstance(heard(ours), Failed)
    assert told.parted


def test_descriptors_that_are_not_as_many_as_their_names(ends: tuple[Channel, Channel]) -> None:
    client, told, ours = opening(ends)
    client.hear(OPENED)
    ours.send(ServeMount(device="fuse", names=("device",)))
    client.read()
    assert heard(ours) == OPENED
    assert isinstance(heard(ours), Failed)
    assert told.parted


def test_an_unknown_message_is_answered_and_logged(
    ends: tuple[Channel, Channel], caplog: pytest.LogCaptureFixture
) -> None:
    client, told, ours = greeted(ends)
    body = b'{"op": "dance"}'
    ours.send_packet(b"LMSG" + len(body).to_bytes(4, "little") + bytes(4) + body)
    client.read()
    failed = heard(ours)
    assert isinstance(failed, Failed)
    assert "does not know 'dance'" in failed.error.message
    assert "dance" in caplog.text
    assert told.parted


def test_who_does_not_say_hello(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    told = Told()
    client = Client(cast("Supervisor", told), theirs, "1-1")
    ours.send(Status())
    client.read()
    assert isinstance(heard(ours), Failed)
    assert told.parted


def test_a_client_of_the_old_wire_is_told_in_its_words(ends: tuple[Channel, Channel]) -> None:
    """As the client of 76f8115 reads it."""
    ours, theirs = ends
    told = Told()
    client = Client(cast("Supervisor", told), theirs, "1-1")
    ours.send_packet(b'{"op": "status"}')
    client.read()
    packet, fds = ours.read_packet()
    body = json.loads(packet)
    assert (body["op"], fds) == ("failed", [])
    error = decode_error(body["error"].encode())
    assert str(error) == "this lamina is older than the mount service that runs"
    assert error.hint is not None
    assert told.parted


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_a_client_of_another_protocol_may_only_upgrade(
    protocol: int, ends: tuple[Channel, Channel]
) -> None:
    ours, theirs = ends
    told = Told()
    client = Client(cast("Supervisor", told), theirs, "1-1")
    ours.send(Hello(protocol=protocol))
    client.read()
    assert heard(ours) == Hello()
    ours.send(Upgrade())
    client.read()
    assert heard(ours) == NotUpgraded()
    assert told.upgrades == 1
    ours.send(Status())
    client.read()
    assert isinstance(heard(ours), Failed)
    assert (told.parted, told.worker) == (True, [])
