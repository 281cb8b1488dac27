"""Messages of any length, with any number of descriptors, between the processes of the service.

The transport is a sequenced-packet socket, whose packets keep descriptors and the bytes they came
with together.  A message is a frame, cut into as many packets as the sender's buffer and the
kernel's limit of descriptors want.  Little-endian:

====== ==== ================================================================================
offset size field
====== ==== ================================================================================
0      4    magic ``LMSG``
4      4    length of the message in bytes
8      4    how many descriptors come with it
12     ...  the message (:mod:`lamina.serve.service.messages`)
====== ==== ================================================================================

A hello is no frame but one packet of bare JSON, ``{...}``, so that each version understands that of
each other.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

from lamina.errors import KernelError
from lamina.serve.service.messages import Hello, Message, UnknownMessageError, decode, encode

LARGEST_PACKET_BYTES: Final = 64 * 1024
"""What a receiver has room for.  A sender whose buffer is smaller sends smaller ones."""

PACKET_DESCRIPTORS: Final = 250
"""Of one packet; the kernel's limit is 253 (SCM_MAX_FD)."""

MAX_MESSAGE_BYTES: Final = 64 << 20
"""What is longer is a defect of who sends it."""

HEADER: Final = struct.Struct("<4sII")
MAGIC: Final = b"LMSG"
_BARE: Final = b"{"
_ROOM_FOR_DESCRIPTORS: Final = socket.CMSG_SPACE(PACKET_DESCRIPTORS * array.array("i").itemsize)


class ChannelError(KernelError):
    """What was sent or received is no message: refused by the kernel, cut off, or not of our kind.
    The connection is of no use any more.
    """


class TooLongError(ChannelError):
    """A message that is too long to be sent to anybody; nothing of it was."""


class GoneError(ChannelError):
    """Nobody is at the other end."""


class OldWireError(ChannelError):
    """The other end speaks the wire of an older version."""

    def __init__(self, packet: bytes, fds: list[int]) -> None:
        """``packet`` is what it said; ``fds``, which came along, belong to who catches this."""
        super().__init__("the other end speaks the wire of an older lamina")
        self.packet = packet
        self.fds = fds


class Received(NamedTuple):
    """A message; the descriptors belong to the receiver."""

    message: Message
    fds: list[int]


class Channel:
    """One end of a connection.  One thread receives; any thread sends."""

    def __init__(self, end: socket.socket) -> None:
        """Own ``end`` from now on."""
        self.socket = end
        self._sending = threading.Lock()
        # A packet that is larger than the buffer is refused (EMSGSIZE), and one that fills it waits
        # until the buffer is empty.
        room = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        self._packet_bytes = max(HEADER.size + 1, min(LARGEST_PACKET_BYTES, room))
        self._data = bytearray()
        self._fds: list[int] = []

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return two ends of a new connection."""
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(two)

    def fileno(self) -> int:
        """Return the descriptor, to be polled; -1 once it is closed."""
        return self.socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """Bound each later call; it raises TimeoutError then."""
        self.socket.settimeout(seconds)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, whose descriptors stay the caller's.

        Raises GoneError, TooLongError, ChannelError for what the kernel refuses, and TimeoutError
        if the other end does not take it in time.
        """
        data = encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooLongError(f"a message of {len(data)} bytes is too long for the mount service")
        if not isinstance(message, Hello):
            data = HEADER.pack(MAGIC, len(data), len(fds)) + data
        what = message.__struct_config__.tag
        with self._sending:
            try:
                for packet, some in _packets(data, fds, self._packet_bytes):
                    self.send_packet(packet, some)
            except TimeoutError:
                raise
            except OSError as error:
                if self.fileno() < 0 or isinstance(error, ConnectionError):
                    raise GoneError("the mount service has gone") from error
                raise ChannelError(f"the mount service cannot be told {what!r}: {error}") from error

    def send_packet(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send one packet as it is.  Raises OSError."""
        if fds:
            socket.send_fds(self.socket, [packet], fds)
        else:
            self.socket.send(packet)

    def tell(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send to one whose end is noticed elsewhere; return False if it has come.

        Raises ChannelError for what cannot be sent to anybody, and TimeoutError.
        """
        try:
            self.send(message, fds)
        except GoneError:
            return False
        return True

    def receive(self) -> Received | None:
        """Wait for a message; None when the other end is closed.

        Raises ChannelError, OldWireError, TimeoutError; UnknownMessageError for a message that is
        not known here, behind which others can be received.
        """
        while self._read_packet():
            received = self._whole()
            if received is not None:
                return received
        return None

    def receive_some(self) -> Received | None:
        """The same for one who must not wait for the rest of a long message, when there is
        something to receive.  Raises BlockingIOError if the rest is still to come.
        """
        if not self._read_packet():
            return None
        received = self._whole()
        if received is None:
            raise BlockingIOError("the rest of a message is still to come")
        return received

    def ask(self, message: Message, fds: Sequence[int] = ()) -> Received | None:
        """Send a message and wait for the answer; None if the other end is gone."""
        return self.receive() if self.tell(message, fds) else None

    def read_packet(self) -> tuple[bytes, list[int]]:
        """Return the next packet as it is, and its descriptors; no bytes when the other end is
        closed.  Raises ChannelError for one that is cut off.
        """
        try:
            # Not socket.recv_fds(), which drops the flags it is given (CPython 3.11).
            data, ancillary, flags, _ = self.socket.recvmsg(
                LARGEST_PACKET_BYTES, _ROOM_FOR_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return b"", []
        fds = _descriptors(ancillary)
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            close_all(fds)
            if flags & socket.MSG_CTRUNC:
                raise ChannelError(
                    "descriptors of a message are lost, because this process may not open more "
                    "files",
                    hint="raise the limit of open files (ulimit -n)",
                )
            raise ChannelError("a packet of a message is too long")
        return data, fds

    def _read_packet(self) -> bool:
        """Take a packet; False when the other end is closed."""
        try:
            data, fds = self.read_packet()
        except ChannelError:
            self._forget()
            raise
        self._data += data
        self._fds += fds
        return bool(data)

    def _whole(self) -> Received | None:
        """Return the message that is complete now, None if more of it is to come."""
        if self._data.startswith(_BARE):
            return self._hello()
        if len(self._data) < HEADER.size:
            return None
        magic, length, count = HEADER.unpack_from(self._data)
        if magic != MAGIC:
            raise self._refusal("the other end says what is no message of the mount service")
        if length > MAX_MESSAGE_BYTES:
            raise self._refusal("a message is longer than any of the mount service")
        if len(self._data) < HEADER.size + length:
            return None
        if len(self._data) > HEADER.size + length or len(self._fds) != count:
            raise self._refusal("a message is longer than it says, or has lost descriptors")
        return self._take(HEADER.size)

    def _hello(self) -> Received:
        data, fds = self._data, self._fds
        self._data, self._fds = bytearray(), []
        with contextlib.suppress(UnknownMessageError):
            if isinstance(message := decode(data), Hello):
                return Received(message, fds)
        raise OldWireError(bytes(data), fds)

    def _take(self, begin: int) -> Received:
        data, fds = self._data[begin:], self._fds
        self._data, self._fds = bytearray(), []
        try:
            return Received(decode(data), fds)
        except UnknownMessageError:
            close_all(fds)
            raise

    def _refusal(self, what: str) -> ChannelError:
        self._forget()
        return ChannelError(what)

    def _forget(self) -> None:
        """Let go of what there is of a message."""
        self._data = bytearray()
        close_all(self._fds)

    @property
    def gone(self) -> bool:
        """Whether the other end is closed and has left nothing to receive."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close this end; may be called again."""
        self._forget()
        with contextlib.suppress(OSError):
            self.socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            # What was cut off may end in the middle of a number.
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody wants, and empty their list."""
    while fds:
        os.close(fds.pop())


def _packets(
    data: bytes, fds: Sequence[int], packet_bytes: int
) -> Iterator[tuple[bytes, Sequence[int]]]:
    """Cut a frame into packets and their descriptors; each packet has a byte at least."""
    count = max(-(-len(data) // packet_bytes), -(-len(fds) // PACKET_DESCRIPTORS))
    for number in range(count):
        part = data[len(data) * number // count : len(data) * (number + 1) // count]
        first = number * PACKET_DESCRIPTORS
        yield part, fds[first : first + PACKET_DESCRIPTORS]
