"""Threads that answer FUSE: whatever happens, each request gets one answer."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from lamina.serve import fuse_server, fuse_threads
from lamina.serve.fuse_server import FuseServer
from lamina.serve.fuse_threads import FuseThreads
from lamina.wire import fuse

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
WRITEV = os.writev


class Echo:
    """Answers with the body of the request."""

    flags = fuse.InitFlag(0)

    def quick(self, request: fuse.Request, scratch: memoryview) -> bytes | None:
        del scratch
        if bytes(request.body) == b"broken":
            raise ValueError("a defect")
        return b"at once" if bytes(request.body) == b"quick" else None

    def handle(self, request: fuse.Request, scratch: memoryview) -> bytes:
        del scratch
        return bytes(request.body)

    def forget(self, nodeid: int, lookups: int) -> None:
        raise AssertionError((nodeid, lookups))


class Kernel:
    """The kernel's end of a device, whose replies may fail."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._next = 1
        self.failures: dict[bytes, int] = {}
        """errno of the next reply with this body."""

    def writev(self, fd: int, parts: Sequence[bytes]) -> int:
        if b"end" in parts:
            raise OSError(errno.ENODEV, "unmounted")
        if (code := self.failures.pop(bytes(parts[-1]), 0)) != 0:
            raise OSError(code, "not this time")
        return WRITEV(fd, parts)

    def ask(self, body: bytes) -> int:
        """Send a request; return its number."""
        self._next += 1
        size = IN_HEADER.size + len(body)
        header = IN_HEADER.pack(size, fuse.Opcode.READ, self._next, 1, 0, 0, 0, 0, 0)
        self._end.send(header + body)
        return self._next

    def answer(self) -> tuple[int, int, bytes]:
        """Receive a reply: (errno, number, body)."""
        data = self._end.recv(1 << 17)
        size, error, unique = OUT_HEADER.unpack_from(data)
        assert size == len(data)
        return -error, unique, data[OUT_HEADER.size :]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    ours, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(60)
    kernel = Kernel(ours)
    monkeypatch.setattr(os, "writev", kernel.writev)
    server = FuseServer(device.detach(), Echo())
    server.start()
    yield kernel
    for _ in range(fuse_server.THREADS):
        kernel.ask(b"end")
    server.close()
    ours.close()


def test_a_request_is_answered(kernel: Kernel) -> None:
    number = kernel.ask(b"hello")
    assert kernel.answer() == (0, number, b"hello")


def test_the_end_of_the_device_ends_the_server() -> None:
    """A read of no bytes is no request that is to be tried again."""
    ours, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = FuseServer(device.detach(), Echo())
    server.start()
    assert server.running
    ours.close()
    server.close()
    assert not server.running


def test_what_can_be_answered_at_once(kernel: Kernel) -> None:
    """What cannot is answered the ordinary way, whatever went wrong."""
    for asked, wanted in ((b"quick", b"at once"), (b"broken", b"broken"), (b"quick", b"at once")):
        number = kernel.ask(asked)
        assert kernel.answer() == (0, number, wanted)


@pytest.mark.parametrize("lost", [(b"lost", b"lost"), (b"quick", b"at once")])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM, errno.EFAULT])
def test_a_reply_that_fails_is_an_error_and_ends_no_thread(
    kernel: Kernel, code: int, lost: tuple[bytes, bytes]
) -> None:
    """A request without an answer would hang its caller for ever."""
    asked, reply = lost
    for _ in range(2 * fuse_server.THREADS):
        kernel.failures[reply] = code
        number = kernel.ask(asked)
        assert kernel.answer() == (errno.EIO, number, b"")
    number = kernel.ask(b"hello")
    assert kernel.answer() == (0, number, b"hello")


def test_a_caller_that_was_killed_gets_no_answer(kernel: Kernel) -> None:
    for _ in range(2 * fuse_server.THREADS):
        kernel.failures[b"killed"] = errno.ENOENT
        kernel.ask(b"killed")
        number = kernel.ask(b"hello")
        assert kernel.answer() == (0, number, b"hello")
        # Else the thread that is yet to fail takes the failure of the next round.
        while b"killed" in kernel.failures:
            time.sleep(0.001)


def test_a_device_that_fails_for_good_is_told_of_ever_less_often(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 500
    real = os.readv
    left = [failures]

    def readv(fd: int, buffers: Sequence[memoryview]) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "broken")
        return real(fd, buffers)

    monkeypatch.setattr(fuse_server, "LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr(os, "readv", readv)
    number = kernel.ask(b"hello")
    assert kernel.answer() == (0, number, b"hello")
    told = [each for each in caplog.records if "reading the FUSE device" in each.message]
    assert len(told) <= failures.bit_length()


def test_many_connections_share_a_few_threads() -> None:
    """An idle mount costs no thread, and one that waits keeps no other from being answered."""
    threads = FuseThreads(most=40)
    gate = threading.Event()

    class Slow(Echo):
        def handle(self, request: fuse.Request, scratch: memoryview) -> bytes:
            if bytes(request.body) == b"slow":
                assert gate.wait(30)
            return super().handle(request, scratch)

    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(200)]
    servers = [FuseServer(device.detach(), Slow(), threads) for _, device in pairs]
    kernels = [Kernel(ours) for ours, _ in pairs]
    for server in servers:
        server.start()
    assert threads.thread_count <= fuse_threads.FIRST_THREADS
    for _, (ours, _) in zip(kernels, pairs, strict=True):
        ours.settimeout(30)
    for _ in range(fuse_server.THREADS):
        kernels[0].ask(b"slow")
    for kernel in kernels[1:]:
        number = kernel.ask(b"hello")
        assert kernel.answer() == (0, number, b"hello")
    gate.set()
    for _ in range(fuse_server.THREADS):
        assert kernels[0].answer()[0] == 0
    # And its own next one is.
    number = kernels[0].ask(b"hello")
    assert kernels[0].answer() == (0, number, b"hello")
    assert threads.thread_count <= 40
    for server in servers:
        server._end()
        server.close()
    threads.close()
    for ours, _ in pairs:
        ours.close()
