"""HTTP/1.1 over a socket of ours: ``http.client`` speaks it, under our deadlines and bounds.

A response is taken as hostile: heads, trailers and the framing of chunks are bounded, what
``http.client`` lets pass and could be read in two ways is refused, every wait ends at the deadline,
and bodies come at a least speed.  Source: RFC 9112.
"""

from __future__ import annotations

import io
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

from lamina.errors import FetchError
from lamina.http.pace import Pace

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from typing_extensions import Buffer

MAX_HEAD_BYTES: Final = 64 << 10
_BUFFER_BYTES: Final = 16 << 10
_DRAIN_BYTES: Final = 64 << 10
_DRAIN_S: Final = 1.0
_PIECE_BYTES: Final = 256 << 10
_FRAMING: Final = 8
"""Bytes on the wire for each byte of a chunked body, at most: one of a chunk of its own has six."""


class ProtocolError(FetchError):
    """The other side does not speak HTTP/1.1 as it should."""

    transient: ClassVar[bool] = True


class Stream(Protocol):
    """A body of a request that is made while it is sent."""

    def __len__(self) -> int:
        """Its size in bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """Its pieces."""


Body = bytes | Stream


class _Wire(io.RawIOBase):
    """A socket as ``http.client`` uses it; each wait ends at the deadline at the latest.

    ``pace`` is the least speed, if there is one; ``left_bytes`` how much may still be read.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self.timeout_s = timeout_s
        self.deadline = 0.0
        self.pace: Pace | None = None
        self.left_bytes: int | None = None
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        started = self._arm()
        got = self._sock.recv_into(buffer)
        self._count(started, got)
        self.ended = not got
        if self.left_bytes is not None:
            self.left_bytes -= got
            if self.left_bytes < 0:
                raise ProtocolError("the answer has too much around its content")
        return got

    def sendall(self, data: bytes) -> None:
        # sendall of a TLS socket has a timeout for each record, and so none at all.
        view = memoryview(data)
        while view:
            started = self._arm()
            sent = self._sock.send(view[:_PIECE_BYTES])
            self._count(started, sent)
            view = view[sent:]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _BUFFER_BYTES)

    def close(self) -> None:
        """Do nothing: each answer closes its file, and the socket outlives it."""

    def _arm(self) -> float:
        timeout_s = self.timeout_s
        if self.pace is not None:
            self.pace.check()
            timeout_s = min(timeout_s, self.pace.left_s)
        return arm(self._sock, timeout_s, self.deadline)

    def _count(self, started: float, moved_bytes: int) -> None:
        if self.pace is not None:
            self.pace.count(time.monotonic() - started, moved_bytes)


def arm(sock: socket.socket, timeout_s: float, deadline: float) -> float:
    """Set the socket's timeout to *timeout_s* or what is left until the deadline (monotonic
    clock); what time it is.
    """
    now = time.monotonic()
    left_s = deadline - now
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    wait_s = min(timeout_s, left_s)
    if sock.gettimeout() != wait_s:
        sock.settimeout(wait_s)
    return now


class Connection:
    """One connection to one origin; used by one thread at a time."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        # Loading it takes some ten milliseconds, which local images need not pay.
        from http.client import HTTPConnection

        self._sock = sock
        self._timeout_s = timeout_s
        self._wire = _Wire(sock, timeout_s)
        # The host is only a name here: the socket is connected and each request has its Host.
        self._http = HTTPConnection("registry")
        self._http.auto_open = 0
        self._http.sock = cast("Any", self._wire)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def is_stale(self) -> bool:
        """Tell whether the idle connection was closed, or has bytes that nobody asked for."""
        return bool(self._poll.poll(0))

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | None,
        deadline: float,
    ) -> None:
        """Send a request; OSError if the connection breaks, ProtocolError if it cannot be sent."""
        check_request(target, headers)
        wire = self._wire
        wire.deadline, wire.left_bytes, wire.pace = deadline, None, Pace()
        self._http.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            self._http.putheader(name, value)
        if body is not None:
            self._http.putheader("Content-Length", str(len(body)))
        self._http.endheaders(body)

    def receive(self, deadline: float, *, patient: bool = False) -> Response:
        """Read the head of the answer; ConnectionError if there is none, ProtocolError if it is
        none.

        A patient one waits for it until the deadline, however long nothing comes.
        """
        wire = self._wire
        wire.deadline, wire.left_bytes = deadline, MAX_HEAD_BYTES + _BUFFER_BYTES
        wire.pace = None
        wire.timeout_s = deadline if patient else self._timeout_s
        with _explained():
            answer = self._http.getresponse()
        wire.timeout_s = self._timeout_s
        if wire.ended:
            answer.close()
            raise ConnectionResetError("the connection was closed inside the answer's head")
        return Response(answer, wire)

    def abort(self) -> None:
        """Wake whoever waits for the other side, with an error; another thread may."""
        with suppress(OSError):
            # That of a TLS socket would let its reader take ciphertext for the answer.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._http.close()
        self._sock.close()


class Response:
    """An answer whose body is still to be read.  ``done`` is called once, when the connection is
    free.  Header names are in lower case, repeated ones joined by a comma.
    """

    def __init__(self, answer: HTTPResponse, wire: _Wire) -> None:
        self._answer = answer
        self._wire = wire
        self.status = answer.status
        try:
            self.headers = _headers(answer)
            _check_framing(answer, self.headers)
        except BaseException:
            answer.close()
            raise
        self.done: Callable[[Response], None] | None = None
        self.reusable = not answer.will_close
        wire.pace = Pace()
        wire.left_bytes = MAX_HEAD_BYTES + _BUFFER_BYTES if answer.chunked else None
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

    def wait_until(self, deadline: float) -> None:
        """Let the rest of the body come until then; ``inf`` leaves the least speed as its bound."""
        self._wire.deadline = deadline

    def hurry(self, wait_s: float) -> None:
        """Wait for the rest of the body no longer than that: it is of little use."""
        self._wire.deadline = min(self._wire.deadline, time.monotonic() + wait_s)

    def read(self, size_bytes: int) -> bytes:
        """At most *size_bytes* (> 0); fewer only at the end, empty after it.

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
            while size_bytes and (got := self._fill(buffer[:size_bytes])):
                parts.append(bytes(buffer[:got]))
                size_bytes -= got
            return b"".join(parts)

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of the buffer; 0 at the end."""
        if self.finished or not len(buffer):
            return 0
        with self._reading():
            got = self._fill(buffer)
            if not got and self._answer.length:
                raise _ends_early(self._answer)
            return got

    def fill(self, buffer: memoryview) -> int:
        """Fill all of the buffer; returns the count, less only at the end.

        Raises ConnectionError if the body ends early or its framing is broken.
        """
        end = 0
        while end < len(buffer) and (got := self.readinto(buffer[end:])):
            end += got
        return end

    def _fill(self, buffer: memoryview) -> int:
        """Fill some of the buffer; extensions of chunks and trailers are bounded by its size."""
        wire = self._wire
        if wire.left_bytes is None:
            return self._answer.readinto(buffer)
        wire.left_bytes += _FRAMING * len(buffer)
        got = self._answer.readinto(buffer)
        wire.left_bytes -= _FRAMING * (len(buffer) - got)
        return got

    def read_all(self, limit_bytes: int, what: str) -> bytes:
        """Return the rest of the body; FetchError if it is longer than the limit."""
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
            self.hurry(_DRAIN_S)
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
