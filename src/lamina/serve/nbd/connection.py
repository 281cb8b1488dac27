"""One client of a disk: it haggles, then its requests are answered in whatever order they are done.

What is on this node is read by the thread that reads the requests, which costs least.  The rest
waits in threads of its own, so that a read that takes long does not keep others back.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.block.base import Disk
from lamina.errors import Error, FormatError
from lamina.serve.nbd.channel import Channel, PlainChannel, TlsChannel
from lamina.serve.nbd.negotiation import Export, Negotiation, Phase
from lamina.serve.patience import read_patiently
from lamina.wire import nbd
from lamina.wire.nbd import Command, CommandFlag, Errno
from lamina.wire.nbd_reply import Replies, SimpleReplies, StructuredReplies

if TYPE_CHECKING:
    import ssl

LOG: Final = logging.getLogger("lamina")

HANDSHAKE_S: Final = 30.0
"""A client that has not chosen the export by then is cut off: it may be anybody."""

IN_FLIGHT: Final = 16
"""Requests of a client that wait for the network at a time, as many as QEMU has."""

IN_FLIGHT_BYTES: Final = 64 << 20
MAX_EXTENTS: Final = 1 << 14
SCRATCH_BYTES: Final = 1 << 20
REQUESTS_AT_ONCE: Final = 64
"""How many requests are received with one system call, if so many are there."""

# Plain numbers, which cost less at every request.
_READ: Final = int(Command.READ)
_WRITING: Final = frozenset(map(int, (Command.TRIM, Command.WRITE_ZEROES)))
_READING: Final = frozenset(map(int, (Command.READ, Command.CACHE, Command.BLOCK_STATUS)))
_ALLOWED: Final = int(CommandFlag.DONT_FRAGMENT | CommandFlag.REQ_ONE | CommandFlag.FUA)


class Served(NamedTuple):
    """What all clients of a server get."""

    disk: Disk
    export: Export
    give_up_s: float | None = None
    tls: ssl.SSLContext | None = None
    """If it is given, nothing is served without TLS."""


class Connection:
    """Serves ``sock``, which it owns, until its end; :meth:`run` is its thread."""

    def __init__(self, sock: socket.socket, served: Served) -> None:
        self._socket = sock
        self._disk = served.disk
        self._served = served
        self._channel: Channel = PlainChannel(sock)
        self._ended = threading.Event()
        self._room = threading.Condition()
        self._waiting_count = 0
        self._waiting_bytes = 0
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._replies: Replies = SimpleReplies()
        self._chunks: StructuredReplies | None = None
        """The same, if they are structured."""
        self._extended = False
        self._allocation = False
        self._workers = ThreadPoolExecutor(IN_FLIGHT, "lamina-nbd-read")

    def run(self) -> None:
        """Serve, and close."""
        try:
            if self._haggle_in_time():
                for head in self._requests():
                    if not self._serve_one(head):
                        break
        except (FormatError, OSError) as error:
            LOG.info("a client of the disk was cut off: %s", error)
        finally:
            self.end()
            self._workers.shutdown()
            self._socket.close()

    def end(self) -> None:
        """Make :meth:`run` return; what waits for the network ends with its next failure."""
        self._ended.set()
        with self._room:
            self._room.notify_all()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _haggle_in_time(self) -> bool:
        # However slowly it sends: a limit of each wait would let it have its place for ever.
        deadline = threading.Timer(HANDSHAKE_S, self.end)
        deadline.daemon = True
        deadline.start()
        try:
            return self._haggle()
        finally:
            deadline.cancel()

    def _haggle(self) -> bool:
        """Go through the options; False if the client went away."""
        self._channel.send(nbd.encode_greeting())
        flags = nbd.decode_client_flags(self._take(nbd.CLIENT_FLAGS.size))
        zeroes = not flags & nbd.HandshakeFlag.NO_ZEROES
        tls = self._served.tls
        negotiation = Negotiation(self._served.export, zeroes=zeroes, needs_tls=tls is not None)
        while negotiation.phase is Phase.OPTIONS:
            option, size = nbd.decode_option(self._take(nbd.OPTION.size))
            if size > nbd.MAX_OPTION_BYTES:
                raise FormatError(f"an NBD client sends an option of {size} bytes")
            reply = negotiation.answer(option, self._take(size))
            self._channel.send(reply)
            if negotiation.wants_tls and tls is not None:
                self._channel = TlsChannel(self._socket, tls)
                negotiation.begin_again()
        self._replies, self._extended = negotiation.replies, negotiation.extended
        if isinstance(self._replies, StructuredReplies):
            self._chunks = self._replies
        self._allocation = negotiation.allocation
        return negotiation.phase is Phase.TRANSMISSION

    def _take(self, size_bytes: int) -> bytes:
        data = bytearray(size_bytes)
        if data and not self._receive_into(memoryview(data)):
            raise FormatError("an NBD client went away while it chose the export")
        return bytes(data)

    def _receive_into(self, view: memoryview) -> bool:
        """Fill *view*; False at the end of the stream before its first byte."""
        done = self._channel.receive_into(view)
        if done == 0:
            return False
        while done < len(view):
            count = self._channel.receive_into(view[done:])
            if count == 0:
                raise FormatError("an NBD client went away inside a request")
            done += count
        return True

    def _requests(self) -> Iterator[memoryview]:
        """Yield each request until the stream ends; each is overwritten later."""
        size = nbd.EXTENDED_REQUEST.size if self._extended else nbd.REQUEST.size
        # A client with many in flight sends several before one is answered: they come at once.
        buffer = memoryview(bytearray(size * REQUESTS_AT_ONCE))
        only = buffer[:size]
        filled = 0
        while count := self._channel.receive_into(buffer[filled:] if filled else buffer):
            filled += count
            if filled == size:
                filled = 0
                yield only
                continue
            rest = filled % size
            for start in range(0, filled - rest, size):
                yield buffer[start : start + size]
            buffer[:rest] = buffer[filled - rest : filled]
            filled = rest
        if filled:
            raise FormatError("an NBD client went away inside a request")

    def _serve_one(self, head: memoryview) -> bool:
        """Answer a request, or hand it to a worker; False at the end."""
        request = nbd.decode_request(head, extended=self._extended)
        command = request.command
        if command == _READ and self._read_now(request):
            return True
        if command == Command.DISCONNECT:
            return False
        if command == Command.WRITE or request.flags & CommandFlag.PAYLOAD:
            # Its data follow, and would be taken for the next request.
            raise FormatError("an NBD client writes to a read-only disk")
        problem = self._problem(request)
        if problem is not None:
            self._fail(request, *problem)
        elif command == Command.FLUSH:
            self._channel.send(self._replies.succeed(request))
        elif command == Command.BLOCK_STATUS:
            self._answer_status(request)
        else:
            self._answer_later(request)
        return True

    def _read_now(self, request: nbd.Request) -> bool:
        """Answer a read of what is here; nearly all are of that kind.  False for all else."""
        size = request.size_bytes
        if size > SCRATCH_BYTES or size == 0 or request.flags & ~_ALLOWED:
            return False
        view = self._scratch[:size]
        try:
            # False too if it is not on the disk, or is evicted meanwhile.
            if not self._disk.read_ready(request.offset, view):
                return False
        except Error:
            # Whoever reads it patiently is told.
            return False
        self._answer_read(request, view)
        return True

    def _problem(self, request: nbd.Request) -> tuple[Errno, str] | None:
        """Return what is wrong with a request."""
        command, size = request.command, request.size_bytes
        if command in _WRITING:
            return Errno.EPERM, "the disk is read-only"
        if command == Command.FLUSH:
            return None
        if command not in _READING:
            return Errno.EINVAL, "no such command"
        if command == Command.BLOCK_STATUS and not self._allocation:
            return Errno.EINVAL, "the client has set no metadata context"
        if request.flags & ~_ALLOWED:
            return Errno.EINVAL, "unknown flags"
        if size == 0 or request.offset + size > self._disk.size_bytes:
            return Errno.EINVAL, "the range is not on the disk"
        if command == Command.READ and size > nbd.MAX_REQUEST_BYTES:
            return Errno.EOVERFLOW, f"more than {nbd.MAX_REQUEST_BYTES} bytes at a time"
        return None

    def _answer_later(self, request: nbd.Request) -> None:
        size = min(request.size_bytes, nbd.MAX_REQUEST_BYTES)
        with self._room:
            while self._waiting_count >= IN_FLIGHT or (
                self._waiting_count and self._waiting_bytes + size > IN_FLIGHT_BYTES
            ):
                if self._ended.is_set():
                    return
                self._room.wait()
            self._waiting_count += 1
            self._waiting_bytes += size
        work = self._cache if request.command == Command.CACHE else self._read
        self._workers.submit(self._work, work, request, size)

    def _work(self, work: Callable[[nbd.Request], None], request: nbd.Request, size: int) -> None:
        try:
            work(request)
        except OSError:
            self.end()
        except Exception:
            # A request without an answer would hang its guest.
            LOG.exception("a request for the disk failed")
            self.end()
        finally:
            with self._room:
                self._waiting_count -= 1
                self._waiting_bytes -= size
                self._room.notify()

    def _read(self, request: nbd.Request) -> None:
        view = memoryview(bytearray(request.size_bytes))
        if self._fill(request, request.offset, view):
            self._answer_read(request, view)

    def _cache(self, request: nbd.Request) -> None:
        """Fetch a range, piece by piece, for later."""
        if self._is_ready(request):
            self._channel.send(self._replies.succeed(request))
            return
        end = request.offset + request.size_bytes
        buffer = memoryview(bytearray(min(request.size_bytes, 8 * SCRATCH_BYTES)))
        for offset in range(request.offset, end, len(buffer)):
            if not self._fill(request, offset, buffer[: end - offset]):
                return
        self._channel.send(self._replies.succeed(request))

    def _is_ready(self, request: nbd.Request) -> bool:
        try:
            return self._disk.is_ready(request.offset, request.size_bytes)
        except Error:
            # Whoever reads it is told.
            return False

    def _answer_read(self, request: nbd.Request, view: memoryview) -> None:
        chunks = self._chunks
        if chunks is not None and view[0] == 0 and self._disk.is_hole(request.offset, len(view)):
            self._channel.send(chunks.hole(request))
        else:
            self._channel.send(self._replies.data_head(request), view)

    def _fill(self, request: nbd.Request, offset: int, view: memoryview) -> bool:
        """Read the disk; False if an error was answered instead."""
        try:
            count = read_patiently(self._disk, offset, view, self._ended, self._served.give_up_s)
        except Error as error:
            LOG.warning("%d bytes at %d of the disk cannot be read: %s", len(view), offset, error)
            number = Errno.ENOSPC if error.errno == Errno.ENOSPC else Errno.EIO
            self._fail(request, number, str(error))
            return False
        if count != len(view):
            self._fail(request, Errno.EIO, "the disk is shorter than it was")
            return False
        return True

    def _answer_status(self, request: nbd.Request) -> None:
        assert self._chunks is not None
        most = 1 if request.flags & CommandFlag.REQ_ONE else MAX_EXTENTS
        segments = islice(self._disk.segments(request.offset, request.size_bytes), most)
        extents = ((segment.size_bytes, segment.is_hole) for segment in segments)
        self._channel.send(self._chunks.block_status(request, extents))

    def _fail(self, request: nbd.Request, error: Errno, message: str) -> None:
        self._channel.send(self._replies.fail(request, error, message))
