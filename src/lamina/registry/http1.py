"""HTTP/1.1 on one connection, client side: request bytes out, response head and body in, under a
deadline.

Written on sockets and not on a library because a container start is some hundred small range
requests: a whole one costs half the CPU of a bare ``http.client`` exchange and a quarter of
urllib3's, and there is nothing to import.  A response is taken as hostile: heads are bounded,
lengths are checked, every wait ends at the deadline.  Source: RFC 9112.
"""

from __future__ import annotations

import io
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from lamina.errors import FetchError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEADERS: Final = 128
_MAX_INTERIM: Final = 8
_BUFFER_BYTES: Final = 32 << 10
_DRAIN_BYTES: Final = 64 << 10
_SEND_BYTES: Final = 256 << 10
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class ProtocolError(FetchError):
    """The other side does not speak HTTP/1.1 as it should."""


class Head(NamedTuple):
    """Status and headers of a response; header names in lower case, repeated ones joined by a
    comma.
    """

    status: int
    headers: dict[str, str]
    version_minor: int


class _SocketReader(io.RawIOBase):
    """The receiving side of a socket, each wait at most until the deadline."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        arm(self._sock, self._timeout_s, self.deadline)
        return self._sock.recv_into(buffer)


def arm(sock: socket.socket, timeout_s: float, deadline: float) -> None:
    """Set the socket's timeout to ``timeout_s`` or what is left until the deadline (monotonic
    clock).
    """
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    wait_s = min(timeout_s, left_s)
    if sock.gettimeout() != wait_s:
        sock.settimeout(wait_s)


class Connection:
    """One connection to one origin; used by one thread at a time."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self._raw = _SocketReader(sock, timeout_s)
        self._reader = io.BufferedReader(self._raw, _BUFFER_BYTES)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def is_stale(self) -> bool:
        """Whether the idle connection was closed, or has bytes that nobody asked for."""
        return bool(self._poll.poll(0))

    def send(self, head: bytes, body: bytes | None, deadline: float) -> None:
        """Send a request; OSError if the connection breaks."""
        self._raw.deadline = deadline
        arm(self._sock, self._timeout_s, deadline)
        view = memoryview(body or b"")
        if len(view) <= _BUFFER_BYTES:
            self._sock.sendall(head + view)
            return
        self._sock.sendall(head)
        # A timeout of sendall is one for the whole call, so a big body goes in blocks.
        for start in range(0, len(view), _SEND_BYTES):
            arm(self._sock, self._timeout_s, deadline)
            self._sock.sendall(view[start : start + _SEND_BYTES])

    def receive(self, method: str, deadline: float) -> Response:
        """Read the head of the answer; ConnectionError if there is none, ProtocolError if it is
        none.
        """
        self._raw.deadline = deadline
        for _ in range(_MAX_INTERIM):
            head = read_head(self._reader)
            if head.status >= 200:
                return Response(head, method, self._reader, self)
        raise ProtocolError("the answer is nothing but interim answers")

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class Response:
    """An answer whose body is still to be read.  ``done`` is called once, when the connection is
    free.
    """

    def __init__(
        self, head: Head, method: str, reader: BinaryIO, connection: Connection | None
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self.connection = connection
        self.done: Callable[[Response], None] | None = None
        self._reader = reader
        self._chunked = False
        self._finished = False
        self.reusable = head.version_minor >= 1 and not _has_token(
            head.headers, "connection", "close"
        )
        self._left: int | None = self._length(head, method)
        if self._left == 0 and not self._chunked:
            self._finish()

    @property
    def length_bytes(self) -> int | None:
        """Bytes of the body that are still to come, if the head told it."""
        return None if self._chunked else self._left

    def read(self, size_bytes: int) -> bytes:
        """At most ``size_bytes`` (> 0); fewer only at the end, empty after it.

        Raises ConnectionError if the body ends early, ProtocolError if its framing is broken.
        """
        parts: list[bytes] = []
        wanted = size_bytes
        while wanted and not self._finished:
            part = self._read_some(wanted)
            parts.append(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of the buffer; 0 at the end."""
        if self._finished or not len(buffer):
            return 0
        if self._chunked or self._left is None:
            part = self._read_some(len(buffer))
            buffer[: len(part)] = part
            return len(part)
        got = int(self._reader.readinto(buffer[: self._left]))  # type: ignore[attr-defined]
        if not got:
            raise ConnectionError(f"the body ends {self._left} bytes early")
        self._took(got)
        return got

    def read_all(self, limit_bytes: int, what: str) -> bytes:
        """The rest of the body; FetchError if it is longer than the limit."""
        data = self.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            self.close()
            raise FetchError(f"{what} is longer than {limit_bytes} bytes")
        return data

    def close(self) -> None:
        """Give the connection back, or close it if much of the body is unread."""
        if self._finished:
            return
        try:
            if not self._chunked and self._left is not None and self._left <= _DRAIN_BYTES:
                self.read(self._left)
        except (OSError, FetchError):
            self.reusable = False
        if not self._finished:
            self.reusable = False
            self._finish()

    def _length(self, head: Head, method: str) -> int | None:
        if method == "HEAD" or head.status in (204, 304):
            return 0
        coding = head.headers.get("transfer-encoding")
        if coding is not None:
            if coding.strip().lower() != "chunked":
                raise ProtocolError(f"the answer has the transfer coding {coding!r}")
            self._chunked = True
            return 0
        text = head.headers.get("content-length")
        if text is None:
            self.reusable = False
            return None
        lengths = {part.strip() for part in text.split(",")}
        length = lengths.pop()
        if lengths or not length.isascii() or not length.isdecimal() or len(length) > 18:
            raise ProtocolError(f"the answer has the content length {text!r}")
        return int(length)

    def _read_some(self, limit: int) -> bytes:
        if self._chunked and not self._left:
            self._left = self._next_chunk()
            if not self._left:
                self._finish()
                return b""
        size = limit if self._left is None else min(limit, self._left)
        data = self._reader.read(size)
        if self._left is None:
            if len(data) < size:
                self._finish()
            return data
        if len(data) < size:
            self.reusable = False
            raise ConnectionError(f"the body ends {self._left - len(data)} bytes early")
        self._took(size)
        return data

    def _took(self, size: int) -> None:
        assert self._left is not None
        self._left -= size
        if self._left:
            return
        if self._chunked:
            if self._reader.readline(3) not in (b"\r\n", b"\n"):
                raise ProtocolError("a chunk of the answer has no end")
        else:
            self._finish()

    def _next_chunk(self) -> int:
        line = self._reader.readline(1024)
        digits = line.partition(b";")[0].strip()
        if not line.endswith(b"\n") or not digits or len(digits) > 15 or set(digits) - _HEX:
            if not line:
                raise ConnectionError("the body ends before its last chunk")
            raise ProtocolError("a chunk of the answer has no size")
        size = int(digits, 16)
        if not size:
            _read_fields(self._reader)
        return size

    def _finish(self) -> None:
        self._finished = True
        if self.done is not None:
            self.done(self)

    @property
    def finished(self) -> bool:
        """Whether the whole body was read (or given up)."""
        return self._finished


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The bytes of a request head; ProtocolError if a value has control characters in it."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    if text.count("\n") != len(headers) or not text.isascii() or "\0" in text:
        raise ProtocolError("a request header has control characters in it")
    return text.encode("ascii") + b"\r\n\r\n"


def read_head(reader: BinaryIO) -> Head:
    """Read one response head; ConnectionError if there is not one byte, ProtocolError if it is
    malformed.
    """
    line = reader.readline(MAX_HEAD_BYTES)
    if not line:
        raise ConnectionResetError("the connection was closed instead of an answer")
    # HTTP/1.1 200 OK
    if not line.startswith(b"HTTP/1.") or len(line) < 12 or not line.endswith(b"\n"):
        raise ProtocolError("the answer is not HTTP/1.1")
    minor, status = line[7:8], line[9:12]
    if not minor.isdigit() or not status.isdigit() or line[8:9] != b" " or status < b"100":
        raise ProtocolError("the answer has a malformed status line")
    return Head(int(status), _read_fields(reader), int(minor))


def _read_fields(reader: BinaryIO) -> dict[str, str]:
    fields: dict[str, str] = {}
    budget = MAX_HEAD_BYTES
    for _ in range(MAX_HEADERS + 1):
        line = reader.readline(budget)
        budget -= len(line)
        if line in (b"\r\n", b"\n"):
            return fields
        if not line:
            raise ConnectionError("the connection was closed inside the answer's head")
        if not line.endswith(b"\n"):
            break
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip():
            raise ProtocolError("the answer has a malformed header")
        name, value = name.lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    raise ProtocolError("the head of the answer is too long")


def _has_token(headers: Mapping[str, str], name: str, token: str) -> bool:
    value = headers.get(name)
    return value is not None and token in (part.strip().lower() for part in value.split(","))
