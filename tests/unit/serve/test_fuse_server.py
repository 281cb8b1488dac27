"""Threads that answer FUSE: whatever happens, each request gets one answer."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence

import pytest

from lamina.serve import fuse_server
from lamina.serve.fuse_server import FuseServer
from lamina.wire import fuse

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
WRITEV = os.writev


class Echo:
    """Answers with the body of the request."""

    flags = fuse.InitFlag(0)

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
    ours.settimeout(10)
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


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM, errno.EFAULT])
def test_a_reply_that_fails_is_an_error_and_ends_no_thread(kernel: Kernel, code: int) -> None:
    """A request without an answer would hang its caller for ever."""
    for _ in range(2 * fuse_server.THREADS):
        kernel.failures[b"lost"] = code
        number = kernel.ask(b"lost")
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
