"""Messages of any length, with any number of descriptors; and what is no message."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from lamina.errors import KernelError
from lamina.serve.error_wire import ReportedError
from lamina.serve.service import channel as channels
from lamina.serve.service.channel import (
    HEADER,
    MAGIC,
    Channel,
    ChannelError,
    GoneError,
    OldWireError,
    TooLongError,
)
from lamina.serve.service.messages import (
    Coverage,
    Failed,
    Hello,
    Noted,
    StatusPage,
    UnknownMessageError,
    encode,
)

SMALLEST_BUFFER = 1
"""Linux makes 4608 of it (SOCK_MIN_SNDBUF), as with a net.core.wmem_default that is as small."""


def ends_of(buffer_bytes: int | None) -> tuple[Channel, Channel]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        if buffer_bytes is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    ours, theirs = Channel(pair[0]), Channel(pair[1])
    for channel in (ours, theirs):
        channel.settimeout(60)
    return ours, theirs


@pytest.fixture(params=[None, SMALLEST_BUFFER], ids=["default buffer", "smallest buffer"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = ends_of(request.param)
    yield ours, theirs
    ours.close()
    theirs.close()


def status_of(mounts: int) -> StatusPage:
    """What a worker tells of so many mounts."""
    path = "/var/lib/containers/storage/overlay/some-image-of-a-tenant/{:08d}/root"
    known = Coverage(ready_bytes=123_456_789, total_bytes=234_567_890)
    return StatusPage(number="1-1", mounts={path.format(number): known for number in range(mounts)})


def failed(text: str) -> Failed:
    return Failed(error=ReportedError(family="Error", message=text))


def test_a_long_message_goes_through(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    said: list[bool] = []
    page = status_of(2000)
    sender = threading.Thread(target=lambda: said.append(theirs.tell(page)))
    sender.start()
    received = ours.receive()
    sender.join()
    assert said == [True]
    assert received is not None
    assert received.message == page
    theirs.send(Noted())
    following = ours.receive()
    assert following is not None
    assert following.message == Noted()


@pytest.mark.parametrize("count", [0, 1, 250, 251, 256, 600])
def test_descriptors_come_in_order(ends: tuple[Channel, Channel], count: int) -> None:
    """An image has up to 254 blobs, and one message of the kernel 253 descriptors."""
    ours, theirs = ends
    sent = [os.memfd_create(f"number-{number}") for number in range(count)]
    sender = threading.Thread(target=theirs.send, args=(Noted(), sent))
    sender.start()
    received = ours.receive()
    sender.join()
    assert received is not None
    assert [os.fstat(fd).st_ino for fd in received.fds] == [os.fstat(fd).st_ino for fd in sent]
    assert not any(os.get_inheritable(fd) for fd in received.fds)
    for fd in (*sent, *received.fds):
        os.close(fd)


@pytest.mark.parametrize("size", range(2200, 2320, 7))
def test_at_every_length(size: int) -> None:
    """Around that of a packet."""
    ours, theirs = ends_of(SMALLEST_BUFFER)
    for _ in range(2):
        sender = threading.Thread(target=theirs.send, args=(failed("y" * size),))
        sender.start()
        received = ours.receive()
        sender.join()
        assert received is not None
        assert received.message == failed("y" * size)
    ours.close()
    theirs.close()


def test_names_that_are_no_text(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    name = os.fsdecode(b"/mnt/\xff\xc3\xa4")
    theirs.send(failed(name))
    received = ours.receive()
    assert received is not None
    assert received.message == failed(name)


def test_threads_do_not_mix_their_messages(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    texts = [str(number) * 10_000 for number in range(8)]
    senders = [threading.Thread(target=theirs.send, args=(failed(text),)) for text in texts]
    for sender in senders:
        sender.start()
    found = []
    for _ in senders:
        received = ours.receive()
        assert received is not None
        assert isinstance(received.message, Failed)
        found.append(received.message.error.message)
    assert sorted(found) == texts
    for sender in senders:
        sender.join()


def test_who_must_not_wait_is_told_that_there_is_more() -> None:
    ours, theirs = ends_of(SMALLEST_BUFFER)
    sender = threading.Thread(target=theirs.send, args=(failed("y" * 5000),))
    sender.start()
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            ours.receive_some()
    received = ours.receive_some()
    sender.join()
    assert received is not None
    assert received.message == failed("y" * 5000)
    theirs.close()
    assert ours.receive_some() is None
    ours.close()


def test_lost_descriptors_are_an_error(ends: tuple[Channel, Channel]) -> None:
    """The kernel drops those for which the receiver has no number, and tells so by a flag only."""
    ours, theirs = ends
    read_end, write_end = os.pipe()
    theirs.send(Noted(), [write_end] * 10)
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


def frame(body: bytes, *, length: int | None = None, fds: int = 0) -> bytes:
    """Section "Messages of any length": magic, length, descriptors, message."""
    return (
        b"LMSG"
        + (len(body) if length is None else length).to_bytes(4, "little")
        + (fds.to_bytes(4, "little") + body)
    )


def test_the_bytes_of_a_frame() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(one)
    channel.send(Noted())
    assert two.recv(1000) == frame(b'{"op": "noted"}')
    channel.send(Hello())
    assert json.loads(two.recv(1000))["op"] == "hello"
    channel.close()
    two.close()


@pytest.mark.parametrize(
    "packet",
    [
        b"no frame at all",
        frame(b"[]", length=1),
        frame(b'{"op": "noted"}', fds=1),
        frame(b"", length=channels.MAX_MESSAGE_BYTES + 1),
    ],
    ids=["magic", "longer", "descriptors", "too long"],
)
def test_what_is_no_frame(packet: bytes) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(one)
    two.send(packet)
    with pytest.raises(ChannelError):
        channel.receive()
    channel.close()
    two.close()


@pytest.mark.parametrize(
    "body",
    [b"no JSON", b"[1]", b'"op"', b"{}", b'{"op": 1}', b'{"op": []}', b'{"op": "x"}',
     b'{"op": "lost"}', b'{"op": "lost", "number": 1}', b"[" * 100_000],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_what_is_no_message(body: bytes) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, other = Channel(one), Channel(two)
    read_end, write_end = os.pipe()
    data = HEADER.pack(MAGIC, len(body), 1) + body
    for start in range(0, len(data), 50_000):
        other.send_packet(data[start : start + 50_000], [] if start else [write_end])
    os.close(write_end)
    with pytest.raises(UnknownMessageError):
        channel.receive()
    assert os.read(read_end, 1) == b"", "what came along is closed"
    os.close(read_end)
    # What comes behind it is received.
    other.send(Noted())
    received = channel.receive()
    assert received is not None
    assert received.message == Noted()
    channel.close()
    other.close()


def test_a_field_that_is_new_is_passed_over() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(one)
    two.send(frame(b'{"op": "noted", "since": 7}'))
    received = channel.receive()
    assert received is not None
    assert received.message == Noted()
    channel.close()
    two.close()


def test_gone_and_refused_and_too_long_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = ends_of(None)
    monkeypatch.setattr(channels, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(TooLongError):
        theirs.send(failed("y" * 1000))
    with pytest.raises(ChannelError) as refused:
        theirs.send(Noted(), [987_654])
    assert not isinstance(refused.value, GoneError | TooLongError)
    ours.close()
    with pytest.raises(GoneError):
        theirs.send(Noted())
    assert not theirs.tell(Noted())
    theirs.close()
    with pytest.raises(GoneError):
        theirs.send(Noted())
    assert theirs.ask(Noted()) is None


def test_who_does_not_listen_is_no_one_who_has_gone() -> None:
    ours, theirs = ends_of(SMALLEST_BUFFER)
    theirs.settimeout(0.05)
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            theirs.send(failed("y" * 1000))
    ours.close()
    theirs.close()


def test_a_message_without_an_end(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send_packet(frame(b'{"op": "no', length=15))
    theirs.close()
    assert ours.receive() is None


def test_the_old_wire_is_recognised() -> None:
    ours, theirs = ends_of(None)
    read_end, write_end = os.pipe()
    theirs.send_packet(b'{"op": "status"}', [write_end])
    os.close(write_end)
    with pytest.raises(OldWireError) as told:
        ours.receive()
    assert told.value.packet == b'{"op": "status"}'
    channels.close_all(told.value.fds)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    theirs.send_packet(encode(Hello(protocol=77)))
    received = ours.receive()
    assert received is not None
    assert received.message == Hello(protocol=77)
    ours.close()
    theirs.close()


def test_errors_keep_their_family() -> None:
    error = ReportedError.of(KernelError("it broke", hint="mend it")).to_error()
    assert (type(error), str(error), error.hint) == (KernelError, "it broke", "mend it")
    assert type(ReportedError(family="LOG", message="x").to_error()) is KernelError
