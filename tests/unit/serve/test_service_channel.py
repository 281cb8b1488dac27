"""Messages of any length, with any number of descriptors; and what is no message."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from lamina.serve.service import channel as channels
from lamina.serve.service.channel import Channel, ChannelError


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    for end in (ours, theirs):
        end.settimeout(60)
    yield ours, theirs
    ours.close()
    theirs.close()


def status_of(mounts: int) -> dict[str, dict[str, object]]:
    """What a worker tells of so many mounts."""
    path = "/var/lib/containers/storage/overlay/some-image-of-a-tenant/{:08d}/root"
    known = {"ready_bytes": 123_456_789, "total_bytes": 234_567_890, "resident": False}
    return {path.format(number): known for number in range(mounts)}


def test_the_status_of_2000_mounts_goes_through(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    said: list[bool] = []
    fields = {"number": "1-1", "mounts": status_of(2000)}
    sender = threading.Thread(target=lambda: said.append(theirs.say("status", **fields)))
    sender.start()
    message = ours.receive()
    sender.join()
    assert said == [True]
    assert message is not None
    assert message.body == {"op": "status", **fields}
    assert theirs.say("next")
    following = ours.receive()
    assert following is not None
    assert following.body == {"op": "next"}


@pytest.mark.parametrize("count", [0, 1, 250, 251, 256, 600])
def test_descriptors_come_in_order(ends: tuple[Channel, Channel], count: int) -> None:
    """An image has up to 254 blobs, and one message of the kernel 253 descriptors."""
    ours, theirs = ends
    sent = [os.memfd_create(f"number-{number}") for number in range(count)]
    sender = threading.Thread(target=theirs.say, args=("serve", sent))
    sender.start()
    message = ours.receive()
    sender.join()
    assert message is not None
    assert [os.fstat(fd).st_ino for fd in message.fds] == [os.fstat(fd).st_ino for fd in sent]
    assert not any(os.get_inheritable(fd) for fd in message.fds)
    for fd in (*sent, *message.fds):
        os.close(fd)


@pytest.mark.parametrize("size", range(90, 130))
def test_at_every_length(
    ends: tuple[Channel, Channel], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PACKET_BYTES", 50)
    ours, theirs = ends
    assert theirs.say("x", text="y" * size)
    message = ours.receive()
    assert message is not None
    assert message.body["text"] == "y" * size


def test_threads_do_not_mix_their_messages(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PACKET_BYTES", 50)
    ours, theirs = ends
    senders = [
        threading.Thread(target=theirs.say, args=("x",), kwargs={"text": str(number) * 500})
        for number in range(8)
    ]
    for sender in senders:
        sender.start()
    found = []
    for _ in senders:
        message = ours.receive()
        assert message is not None
        found.append(message.body["text"])
    assert sorted(found) == [str(number) * 500 for number in range(8)]
    for sender in senders:
        sender.join()


def test_who_must_not_wait_is_told_that_there_is_more(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(channels, "PACKET_BYTES", 50)
    theirs.say("x", text="y" * 100)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            ours.receive_some()
    message = ours.receive_some()
    assert message is not None
    assert message.body["text"] == "y" * 100
    theirs.close()
    assert ours.receive_some() is None


def test_lost_descriptors_are_an_error(ends: tuple[Channel, Channel]) -> None:
    """The kernel drops those for which the receiver has no number, and tells so by a flag only."""
    ours, theirs = ends
    read_end, write_end = os.pipe()
    assert theirs.say("keep", [write_end] * 10)
    os.close(write_end)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        numbers = []
        with contextlib.suppress(OSError):
            while True:
                numbers.append(os.dup(0))
                taken.callback(os.close, numbers[-1])
        freed = taken.pop_all()
        with freed:
            for number in numbers[:3]:
                # Closed again by the stack.
                os.close(number)
            try:
                with pytest.raises(ChannelError, match="descriptors"):
                    ours.receive()
                # What came is closed again.
                again = [os.dup(0) for _ in range(3)]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for number in numbers[:3]:
                    os.dup2(0, number)
        assert again == numbers[:3]
    assert os.read(read_end, 1) == b"", "a descriptor of a message that was refused is open"
    os.close(read_end)


@pytest.mark.parametrize(
    "packets",
    [[b"no JSON"], [b"[1]"], [b'"op"'], [b"{}"], [b'{"op": 1}'], [b"+{", b'{"op": "x"}'], [b"."]],
    ids=repr,
)
def test_what_is_no_message(packets: list[bytes]) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(one)
    for packet in packets:
        two.send(packet)
    with pytest.raises(ChannelError):
        channel.receive()
    # It can be used on.
    two.send(b'{"op": "y"}')
    message = channel.receive()
    assert message is not None
    assert message.body == {"op": "y"}
    channel.close()
    two.close()


def test_nobody_there_is_told_from_what_cannot_be_said(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    with pytest.raises(ChannelError, match="too long"):
        theirs.say("x", text="y" * channels.MAX_MESSAGE_BYTES)
    with pytest.raises(ChannelError):
        theirs.say("x", [987_654])
    ours.close()
    assert not theirs.say("x")
    theirs.close()
    assert not theirs.say("x")


def test_a_message_without_an_end(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs._socket.send(b'+{"op"')
    theirs.close()
    assert ours.receive() is None


def test_the_limit_of_a_whole_message(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = ends
    monkeypatch.setattr(channels, "MAX_MESSAGE_BYTES", 1000)
    for _ in range(20):
        theirs._socket.send(b"+" + b"x" * 100)
    with pytest.raises(ChannelError, match="longer"):
        ours.receive()
