"""The broker behind HTTPS: bounded requests, a thread for each connection, not too many, and not
all for one client.

Everything here stands between an unknown sender and the keys: heads and bodies are bounded, each
connection has a deadline from its first byte on, TLS begins in the connection's own thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final

from lamina.errors import UsageError
from lamina.kbs.broker import Broker, Reply, Request
from lamina.kbs.client_group import client_group
from lamina.trust.broker.protocol import MAX_BODY_BYTES, SESSION_COOKIE, Problem, encode_problem

MAX_CONNECTIONS: Final = 256
MAX_CONNECTIONS_OF_CLIENT: Final = 32
"""From one address, or one network of IPv6."""
_MAX_AT_WORK: Final = 8
"""Requests that are decided at once: what they are parsed into takes many times their size."""
DEADLINE_S: Final = 30.0
_POLL_S: Final = 0.2


class _Handler(BaseHTTPRequestHandler):
    """One request a connection: keys are fetched seldom, and a deadline is then one for all."""

    protocol_version = "HTTP/1.1"
    server_version = "lamina-kbs"
    sys_version = ""
    server: BrokerServer
    timeout = DEADLINE_S

    def _answer(self) -> None:
        body = self._body()
        if isinstance(body, Reply):
            self._send(body)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body, self.client_address[0])
        with self.server.at_work:
            reply = self.server.broker.handle(request)
        self._send(reply)

    do_GET = do_POST = _answer  # noqa: N815

    def _body(self) -> bytes | Reply:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            return _malformed(411, "a body has a content length")
        size = int(length[:12])
        if size > MAX_BODY_BYTES:
            return _malformed(413, f"a body has at most {MAX_BODY_BYTES} bytes")
        body = self.rfile.read(size)
        return body if len(body) == size else _malformed(400, "the body ends early")

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        if reply.cookie:
            secure = "; Secure" if self.server.context is not None else ""
            self.send_header("Set-Cookie", f"{SESSION_COOKIE}={reply.cookie}; HttpOnly{secure}")
        self.end_headers()
        self.wfile.write(reply.body)
        self.close_connection = True

    def send_error(self, code: int, message: str | None = None, *_: Any, **__: Any) -> None:
        self._send(_malformed(code, message or "the request is malformed"))

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing: the audit log has what matters, and request lines may not."""


def _malformed(status: int, detail: str) -> Reply:
    return Reply(status, encode_problem(Problem("MalformedRequest", detail)))


class BrokerServer(ThreadingMixIn, TCPServer):
    """Serves a broker on an address.  ``context`` None is HTTP, for loopback only."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], broker: Broker, context: ssl.SSLContext | None
    ) -> None:
        self.broker = broker
        self.context = context
        self.at_work = threading.BoundedSemaphore(_MAX_AT_WORK)
        self._lock = threading.Lock()
        self._connected: Counter[str] = Counter()
        self._deadlines: dict[socket.socket, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {address[0]} port {address[1]}: {error.strerror}"
            ) from None

    def get_request(self) -> tuple[Any, Any]:
        """Take a connection; where that fails, as without descriptors, not again at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_POLL_S)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Tell whether there is a thread for the connection: of all, and of those for one
        client.
        """
        group = client_group(client_address[0])
        with self._lock:
            if self._connected.total() >= MAX_CONNECTIONS:
                return False
            if self._connected[group] >= MAX_CONNECTIONS_OF_CLIENT:
                return False
            self._connected[group] += 1
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread could be started, so none gives the place back.
            self._release(client_address)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection until its deadline."""
        try:
            # TLS takes the socket over, so the deadline has a descriptor of its own.
            with self._watched(request):
                request.settimeout(DEADLINE_S)
                if self.context is not None:
                    request = self.context.wrap_socket(request, server_side=True)
                super().process_request_thread(request, client_address)
        except OSError:
            # A handshake that fails; handlers report their own through handle_error.
            request.close()
        finally:
            self._release(client_address)

    @contextlib.contextmanager
    def _watched(self, request: Any) -> Iterator[None]:
        """End the connection at its deadline."""
        watched = request.dup()
        with self._lock:
            self._deadlines[watched] = time.monotonic() + DEADLINE_S
        try:
            yield
        finally:
            with self._lock:
                del self._deadlines[watched]
            watched.close()

    def _release(self, client_address: Any) -> None:
        group = client_group(client_address[0])
        with self._lock:
            self._connected[group] -= 1
            if not self._connected[group]:
                del self._connected[group]

    def service_actions(self) -> None:
        """End connections that are past their deadline."""
        now = time.monotonic()
        with self._lock:
            for sock in [sock for sock, end in self._deadlines.items() if now >= end]:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """Say nothing of connections that break: whoever can connect could fill a log."""

    def run(self) -> None:
        """Serve until ``shutdown`` is called from another thread."""
        self.serve_forever(_POLL_S)


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS from 1.2 with a certificate.  Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "they are no pair in PEM"
        raise UsageError(f"cannot use the certificate {certificate} with {key}: {reason}") from None
    return context


def _no_passphrase() -> str:
    """Keep OpenSSL from asking on the terminal."""
    return ""
