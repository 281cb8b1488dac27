"""A stream to a client: as it is, or inside TLS.

Several threads send on one channel while another receives.  OpenSSL does not allow that of one
session, so a session of TLS works in memory here, behind a lock that is never held while the
socket waits.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Final, Protocol, cast

from lamina.errors import FormatError

if TYPE_CHECKING:
    import ssl

_RECORDS_BYTES: Final = 64 << 10
"""How much of what a client sends is decrypted at a time: some records of TLS."""


class Channel(Protocol):
    """Both directions of a connection.  ``OSError`` is the failure of either."""

    def receive_into(self, view: memoryview) -> int:
        """Receive into *view* what is there; 0 at the end of the stream."""

    def send(self, head: bytes, data: memoryview | None = None) -> None:
        """Send both whole: nothing of another call may come between them."""


class PlainChannel:
    """The socket as it is; it stays the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        self.receive_into: Final = sock.recv_into
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, head: bytes, data: memoryview | None = None) -> None:
        """Send both, with one system call if the socket takes them."""
        with self._sending:
            if data is None:
                self._socket.sendall(head)
                return
            sent = self._socket.sendmsg([head, data])
            if sent < len(head):
                self._socket.sendall(head[sent:])
                sent = len(head)
            if sent < len(head) + len(data):
                self._socket.sendall(data[sent - len(head) :])


class TlsChannel:
    """The server's side of TLS on a socket, which stays the caller's."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Shake hands.  Raises FormatError if the client goes away, OSError if it is refused."""
        import ssl

        self._wants_more = ssl.SSLWantReadError
        self._socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._session = threading.Lock()
        self._sending = threading.Lock()
        try:
            self._shake_hands()
        except OSError:
            # What is wrong is said by an alert, which the client is to get.
            with contextlib.suppress(OSError):
                self._flush()
            raise

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except self._wants_more:
                self._flush()
                if not self._fill():
                    raise FormatError("an NBD client went away while it began TLS") from None
            else:
                self._flush()
                return

    def receive_into(self, view: memoryview) -> int:
        """Receive into *view* what is there; 0 at the end of the stream."""
        while True:
            try:
                with self._session:
                    count = cast("int", self._tls.read(len(view), view))
            except self._wants_more:
                # A client may have asked for other keys, which is answered.
                self._flush()
                if not self._fill():
                    return 0
            else:
                return count

    def send(self, head: bytes, data: memoryview | None = None) -> None:
        """Send both whole."""
        with self._sending:
            with self._session:
                self._tls.write(head)
                if data is not None:
                    self._tls.write(data)
                records = self._outgoing.read()
            self._socket.sendall(records)

    def _fill(self) -> bool:
        """Take more from the socket; False at its end."""
        records = self._socket.recv(_RECORDS_BYTES)
        with self._session:
            if records:
                self._incoming.write(records)
        return bool(records)

    def _flush(self) -> None:
        """Send what the session itself has to say, in the order in which it said it."""
        if self._outgoing.pending:
            with self._sending:
                with self._session:
                    records = self._outgoing.read()
                self._socket.sendall(records)
