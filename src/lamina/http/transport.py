"""Requests over kept connections: connect, TLS, proxies, stale connections.  No credentials, no
redirects.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from lamina.errors import FetchError
from lamina.http.connect import connect
from lamina.http.http1 import Body, Connection, ProtocolError, Response, arm
from lamina.http.pace import TooSlowError
from lamina.http.proxy import Proxy, proxy_for
from lamina.http.transient import TransientError
from lamina.http.url import Origin, Url
from lamina.version import VERSION

if TYPE_CHECKING:
    import ssl

    from lamina.http.client_options import ClientOptions
    from lamina.http.tls import HostTls, TlsContexts

USER_AGENT: Final = f"lamina/{VERSION}"
_KEEPALIVE_IDLE_S: Final = 30

_Request = tuple[str, str, dict[str, str], Body | None, float]
"""Method, target, headers, body, deadline."""


class Pool:
    """Idle connections by origin, the last used first.  Thread-safe; ``close`` is idempotent.

    It does not limit how many connections are open, only how many are kept: callers bound their
    threads.
    """

    def __init__(
        self,
        options: ClientOptions,
        *,
        context_of: Callable[[Origin], ssl.SSLContext] | None = None,
        host_tls: Callable[[], HostTls] | None = None,
        through_proxies: bool = True,
    ) -> None:
        """Trust servers by the context that *context_of* returns; by default as registries are:
        the system's authorities and those that are configured, *host_tls* among them.
        """
        self._options = options
        self._host_tls = host_tls
        self._context_of = context_of or self._registry_context
        self._through_proxies = through_proxies
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._closed = False
        self._process = os.getpid()
        self._tls: TlsContexts | None = None
        self._proxies: dict[Origin, Proxy | None] = {}

    def request(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: Body | None,
        deadline: float,
    ) -> Response:
        """Send one request and read the head of its answer; the caller reads or closes the
        response.

        A kept connection that turns out to be dead is replaced, once.  *deadline* is on the
        monotonic clock; while a stream is sent only the least speed counts.  Raises TransientError
        for everything that another attempt may cure, else FetchError.
        """
        if self._closed:
            raise FetchError(f"{url.origin} is not asked any more: the connections were closed")
        proxy = self._proxy(url.origin)
        request = (method, *_prepared(url, headers, proxy), body, deadline)
        try:
            kept = self._take(url.origin)
            # Of other methods the server may have done something before it broke.
            passing = (ConnectionError,) if method in ("GET", "HEAD") else ()
            if kept is not None:
                with contextlib.suppress(*passing):
                    return self._exchange(kept, url.origin, request)
            fresh = self._connect(url.origin, proxy, deadline)
            return self._exchange(fresh, url.origin, request)
        except OSError as error:
            raise _explain(error, url.origin, proxy) from error
        except ProtocolError as error:
            raise ProtocolError(f"{url.origin}: {error}") from None

    def close(self) -> None:
        """Close the connections, and let whoever still waits for an answer have an error at once;
        may be called again.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
            # Of a fork the parent's connections are none of its business.
            for connection in self._busy if self._process == os.getpid() else ():
                connection.abort()
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _exchange(self, connection: Connection, origin: Origin, request: _Request) -> Response:
        method, target, headers, body, deadline = request
        streamed = not (body is None or isinstance(body, bytes))
        broken = False
        try:
            self._begin(connection)
            try:
                connection.send(method, target, headers, body, math.inf if streamed else deadline)
            except ConnectionError:
                if body is None:
                    raise
                # A server may refuse a body before its end; its answer says why.
                broken = True
            if streamed:
                deadline = time.monotonic() + self._options.deadline_s
            # A registry puts a blob of gigabytes in its place before it answers.
            response = connection.receive(deadline, patient=method == "PUT")
        except BaseException:
            self._drop(connection)
            raise
        if broken:
            response.reusable = False
        if response.finished:
            self._give_back(origin, connection, response)
        else:
            response.done = lambda finished: self._give_back(origin, connection, finished)
        return response

    def _take(self, origin: Origin) -> Connection | None:
        with self._lock:
            if self._process != os.getpid():
                # The connections belong to the parent; closing the descriptors says nothing to the
                # server.
                self._process = os.getpid()
                self._idle.clear()
                self._busy.clear()
            connections = self._idle.get(origin)
            while connections:
                connection = connections.pop()
                if not connection.is_stale():
                    return connection
                connection.close()
        return None

    def _give_back(self, origin: Origin, connection: Connection, response: Response) -> None:
        if response.reusable:
            with self._lock:
                idle = self._idle.setdefault(origin, [])
                if not self._closed and len(idle) < self._options.connections:
                    self._busy.discard(connection)
                    idle.append(connection)
                    return
        self._drop(connection)

    def _begin(self, connection: Connection) -> None:
        with self._lock:
            self._busy.add(connection)
            if self._closed:
                raise ConnectionAbortedError("the connections were closed")

    def _drop(self, connection: Connection) -> None:
        with self._lock:
            # Nobody aborts a descriptor that may be another's soon.
            self._busy.discard(connection)
        connection.close()

    def _connect(self, origin: Origin, proxy: Proxy | None, deadline: float) -> Connection:
        timeout_s = self._options.timeout_s
        connect_s = self._options.connect_timeout_s or timeout_s
        host, port = (proxy.host, proxy.port) if proxy else (origin.host, origin.port)
        sock = connect(host, port, connect_s, deadline)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
            arm(sock, timeout_s, deadline)
            if origin.scheme == "https":
                if proxy is not None:
                    _tunnel(sock, timeout_s, origin, proxy, deadline)
                context = self._context_of(origin)
                sock = context.wrap_socket(sock, server_hostname=origin.host)
            return Connection(sock, timeout_s)
        except BaseException:
            sock.close()
            raise

    def _proxy(self, origin: Origin) -> Proxy | None:
        if not self._through_proxies:
            return None
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin)
        return self._proxies[origin]

    def _registry_context(self, origin: Origin) -> ssl.SSLContext:
        if self._tls is None:
            from lamina.http.tls import TlsContexts

            self._tls = TlsContexts(
                self._options.ca_file,
                verify=self._options.verify_tls,
                host=self._host_tls() if self._host_tls else None,
            )
        return self._tls.context(origin)


@contextlib.contextmanager
def translated(origin: Origin) -> Iterator[None]:
    """Turn what reading a body can raise into FetchErrors that name the origin."""
    try:
        yield
    except OSError as error:
        raise _explain(error, origin, None) from error


def _prepared(
    url: Url, headers: Mapping[str, str], proxy: Proxy | None
) -> tuple[str, dict[str, str]]:
    """Return the target of a request and all its headers."""
    lines = {"Host": url.origin.authority, "User-Agent": USER_AGENT}
    # A compressed answer would be a bomb to bound and has no digest of its own.
    lines["Accept-Encoding"] = "identity"
    lines.update(headers)
    if proxy is None or url.origin.scheme == "https":
        return url.target, lines
    if proxy.authorization:
        lines["Proxy-Authorization"] = proxy.authorization
    return str(url), lines


def _tunnel(
    sock: socket.socket, timeout_s: float, origin: Origin, proxy: Proxy, deadline: float
) -> None:
    """Ask the proxy to connect through (RFC 9110 §9.3.6)."""
    target = (
        f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
    )
    headers = {"Host": target, "User-Agent": USER_AGENT}
    if proxy.authorization:
        headers["Proxy-Authorization"] = proxy.authorization
    connection = Connection(sock, timeout_s)
    connection.send("CONNECT", target, headers, None, deadline)
    response = connection.receive(deadline)
    if response.status != 200:
        raise ProtocolError(f"the proxy {proxy.host}:{proxy.port} answers {response.status}")


def _explain(error: OSError, origin: Origin, proxy: Proxy | None) -> FetchError:
    through = f" through the proxy {proxy.host}:{proxy.port}" if proxy else ""
    where = f"{origin}{through}"
    kind = type(error).__name__
    if kind == "SSLCertVerificationError":
        reason = getattr(error, "verify_message", "") or "it cannot be verified"
        return FetchError(
            f"the certificate of {where} is refused: {reason}",
            hint="name its authority with --ca-file, or in /etc/docker/certs.d/HOST/ca.crt",
        )
    if kind.startswith("SSL") and not isinstance(error, TimeoutError):
        return FetchError(
            f"{where} does not speak TLS as it should: {getattr(error, 'reason', None) or kind}",
            hint="a registry without TLS needs --plain-http",
        )
    if isinstance(error, TooSlowError):
        return TransientError(f"{where} is too slow: {error}")
    if isinstance(error, TimeoutError):
        return TransientError(f"{where} did not answer in time")
    if isinstance(error, socket.gaierror):
        return TransientError(f"the name of {where} cannot be resolved: {error.strerror}")
    reason = error.strerror or str(error) or kind
    return TransientError(f"the connection to {where} failed: {reason}")
