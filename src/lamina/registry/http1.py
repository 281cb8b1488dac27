"""HTTP/1.1 over a socket of ours: ``http.client`` speaks it, under our deadlines and bounds.

A response is taken as hostile: heads are bounded, what ``http.client`` lets pass and could be read
in two ways is refused, every wait ends at the deadline.  Source: RFC 9112.
"""

from __future__ import annotations

import io
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from lamina.errors import FetchError

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from typing_extensions import Buffer

MAX_HEAD_BYTES: Final = 64 << 10
_BUFFER_BYTES: Final = 16 << 10
_DRAIN_BYTES: Final = 64 << 10
_PIECE_BYTES: Final = 256 << 10


class ProtocolError(FetchError):
    """The other side does not speak HTTP/1.1 as it should."""


class _Wire(io.RawIOBase):
    """A socket as ``http.client`` uses it; each wait ends at the deadline at the latest."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self.deadline = 0.0
        self.head_left_bytes: int | None = None
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        arm(self._sock, self._timeout_s, self.deadline)
        got = self._sock.recv_into(buffer)
        self.ended = not got
        if self.head_left_bytes is not None:
            self.head_left_bytes -= got
            if self.head_left_bytes < 0:
                raise ProtocolError("the head of the answer is too long")
        return got

    def sendall(self, data: bytes) -> None:
        # A timeout of sendall is one for the whole call, so a big body goes in pieces.
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            arm(self._sock, self._timeout_s, self.deadline)
            self._sock.sendall(view[start : start + _PIECE_BYTES])

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _BUFFER_BYTES)

    def close(self) -> None:
        """Do nothing: each answer closes its file, and the socket outlives it."""


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
        # Loading it takes some ten milliseconds, which local images need not pay.
        from http.client import HTTPConnection

        self._sock = sock
        self._wire = _Wire(sock, timeout_s)
        # The host is only a name here: the socket is connected and each request has its Host.
        self._http = HTTPConnection("registry")
        self._http.auto_open = 0
        self._http.sock = cast("Any", self._wire)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def is_stale(self) -> bool:
        """Whether the idle connection was closed, or has bytes that nobody asked for."""
        return bool(self._poll.poll(0))

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> None:
        """Send a request; OSError if the connection breaks, ProtocolError if it cannot be sent."""
        check_request(target, headers)
        self._wire.deadline = deadline
        self._wire.head_left_bytes = None
        self._http.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            self._http.putheader(name, value)
        if body is not None:
            self._http.putheader("Content-Length", str(len(body)))
        self._http.endheaders(body)

    def receive(self, deadline: float) -> Response:
        """Read the head of the answer; ConnectionError if there is none, ProtocolError if it is
        none.
        """
        wire = self._wire
        wire.deadline, wire.head_left_bytes = deadline, MAX_HEAD_BYTES + _BUFFER_BYTES
        with _explained():
            answer = self._http.getresponse()
        wire.head_left_bytes = None
        if wire.ended:
            answer.close()
            raise ConnectionResetError("the connection was closed inside the answer's head")
        return Response(answer)

    def close(self) -> None:
        """Close the socket."""
        self._http.close()
        self._sock.close()


class Response:
    """An answer whose body is still to be read.  ``done`` is called once, when the connection is
    free.  Header names are in lower case, repeated ones joined by a comma.
    """

    def __init__(self, answer: HTTPResponse) -> None:
        self._answer = answer
        self.status = answer.status
        try:
            self.headers = _headers(answer)
            _check_framing(answer, self.headers)
        except BaseException:
            answer.close()
            raise
        self.done: Callable[[Response], None] | None = None
        self.reusable = not answer.will_close
        if answer.length == 0:
            answer.close()

    @property
    def finished(self) -> bool:
        """Whether the whole body was read (or given up)."""
        return self._answer.isclosed()

    @property
    def length_bytes(self) -> int | None:
        """Bytes of the body that are still to come, if the head told it."""
        return None if self._answer.chunked else self._answer.length

    def read(self, size_bytes: int) -> bytes:
        """At most ``size_bytes`` (> 0); fewer only at the end, empty after it.

        Raises ConnectionError if the body ends early or its framing is broken.
        """
        if self.finished:
            return b""
        with self._reading():
            if not self._answer.chunked:
                data = self._answer.read(size_bytes)
                if len(data) < size_bytes and self._answer.length:
                    raise _ends_early(self._answer)
                return data
            # Its read() takes a negative chunk size for all that comes; readinto() is bounded.
            parts: list[bytes] = []
            buffer = memoryview(bytearray(min(size_bytes, _PIECE_BYTES)))
            while size_bytes and (got := self._answer.readinto(buffer[:size_bytes])):
                parts.append(bytes(buffer[:got]))
                size_bytes -= got
            return b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of the buffer; 0 at the end."""
        if self.finished or not len(buffer):
            return 0
        with self._reading():
            got = self._answer.readinto(buffer)
            if not got and self._answer.length:
                raise _ends_early(self._answer)
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
        if self.finished:
            return
        length = self.length_bytes
        if self.reusable and length is not None and length <= _DRAIN_BYTES:
            try:
                self.read(length)
            except (OSError, FetchError):
                self.reusable = False
        if not self.finished:
            self.reusable = False
            self._finish()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with _explained():
                yield
        except BaseException:
            self.reusable = False
            self._finish()
            raise
        if self.finished:
            self._finish()

    def _finish(self) -> None:
        self._answer.close()
        done, self.done = self.done, None
        if done is not None:
            done(self)


def check_request(target: str, headers: Mapping[str, str]) -> None:
    """ProtocolError unless all of a request head is printable ASCII.

    The message quotes nothing: a header may be a password, as a target may.
    """
    if " " in target or not all(
        text.isascii() and text.isprintable() for text in (target, *headers, *headers.values())
    ):
        raise ProtocolError("a request has characters in it that cannot be sent")


def _headers(answer: HTTPResponse) -> dict[str, str]:
    message = answer.headers
    # The e-mail parser takes what follows a malformed line for the text of a letter.
    if message.defects or message.get_payload():
        raise ProtocolError("the answer has a malformed header")
    fields: dict[str, str] = {}
    for name, value in message.items():
        name, value = name.lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _check_framing(answer: HTTPResponse, headers: Mapping[str, str]) -> None:
    """ProtocolError unless there is one way to tell where the body ends (RFC 9112 §6.3)."""
    if answer.status < 200:
        raise ProtocolError(f"the answer has the interim status {answer.status}")
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is not None and (length is not None or not answer.chunked or "," in coding):
        also = "" if length is None else " and a content length"
        raise ProtocolError(f"the answer has the transfer coding {coding[:80]!r}{also}")
    if length is not None:
        different = set(length.split(", "))
        text = different.pop()
        decimal = text.isascii() and text.isdecimal() and len(text) <= 18
        if different or not decimal or answer.length is None:
            raise ProtocolError(f"the answer has the content length {length[:80]!r}")


def _ends_early(answer: HTTPResponse) -> ConnectionError:
    return ConnectionResetError(f"the body ends {answer.length} bytes early")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of ``http.client`` into ours."""
    from http.client import HTTPException, IncompleteRead

    try:
        yield
    except IncompleteRead:
        raise ConnectionResetError("the body ends early") from None
    except OSError:
        raise
    except (HTTPException, ValueError) as error:
        # What it says may quote the answer; the parser of header fields lets ValueError through.
        raise ProtocolError(f"the answer is not HTTP/1.1 ({type(error).__name__})") from None
