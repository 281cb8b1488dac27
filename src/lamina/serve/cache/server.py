"""The cache behind HTTP: bounded requests, a thread for each connection, not too many of them.

It says nothing of what is asked for, not even to a log: lengths and order are all that it learns,
and it keeps no more of them than what is where in the store.
"""

from __future__ import annotations

import itertools
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, ThreadingMixIn
from typing import Any, Final

from lamina.errors import Error, NotFoundError
from lamina.oci.manifest import OCI_INDEX, encode
from lamina.oci.reference import is_digest
from lamina.serve.cache.blob_cache import BlobCache
from lamina.serve.cache.protocol import (
    Question,
    RangeError,
    Refusal,
    parse_range,
    parse_target,
    refusal,
    refuse,
)
from lamina.serve.cache.upstream import UpstreamRepository

LOG: Final = logging.getLogger("lamina")

MAX_CONNECTIONS: Final = 256
_MAX_AT_WORK: Final = 32
"""Answers that are made at once."""
_IDLE_S: Final = 60.0
_POLL_S: Final = 0.2
_DIGEST_HEADER: Final = "Docker-Content-Digest"


class _Handler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "lamina-cache"
    sys_version = ""
    server: CacheServer
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer a question, or say why not."""
        if "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            # A body that is not read would be taken for the next request.
            self.close_connection = True
        if self.path in ("/v2", "/v2/"):
            self._send(200, {"Content-Type": "application/json"}, b"{}")
            return
        question = parse_target(self.path)
        try:
            if question is None:
                raise NotFoundError("there is nothing at this path")
            with self.server.asked(question) as repository:
                getattr(self, f"_{question.kind}")(repository, question.which)
        except Error as error:
            LOG.debug("a guest is told: %s", error)
            self._refuse(refusal(error))

    do_HEAD = do_GET  # noqa: N815

    def _manifests(self, asked: UpstreamRepository, which: str) -> None:
        with self.server.at_work:
            found = self.server.cache.manifest(asked, which)
        descriptor = found.descriptor
        headers = {"Content-Type": descriptor.media_type, _DIGEST_HEADER: descriptor.digest}
        self._send(200, headers, found.data)

    def _referrers(self, asked: UpstreamRepository, which: str) -> None:
        _demand_digest(which)
        with self.server.at_work:
            found = list(asked.repository.referrers(which))
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
        self._send(200, {"Content-Type": OCI_INDEX}, encode(index))

    def _blobs(self, asked: UpstreamRepository, which: str) -> None:
        _demand_digest(which)
        with self.server.cache.blob(asked, which) as blob:
            size = blob.size_bytes
            headers = {
                "Content-Type": "application/octet-stream",
                "Accept-Ranges": "bytes",
                _DIGEST_HEADER: which,
            }
            try:
                wanted = parse_range(self.headers.get("Range"), size)
            except RangeError as error:
                told = refuse(416, "SIZE_INVALID", str(error))
                self._refuse(told, {"Content-Range": f"bytes */{size}"})
                return
            start, stop = wanted or (0, size)
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            status, size = 206 if wanted else 200, stop - start
            if self.command == "HEAD":
                self._head(status, headers, size)
                return
            with closing(blob.read(start, stop, asked.source)) as windows:
                # Before the head is sent, so that an error can still be told.
                begun = self._begun(windows)
                self._head(status, headers, size)
                self._body(begun)

    def _begun(self, windows: Iterator[memoryview]) -> Iterator[memoryview]:
        with self.server.at_work:
            return itertools.chain([next(windows, memoryview(b""))], windows)

    def _body(self, windows: Iterator[memoryview]) -> None:
        while True:
            # No two of them are in memory: a guest may take its time to read one.
            window = None
            try:
                with self.server.at_work:
                    window = next(windows, None)
            except Error as error:
                LOG.debug("a guest gets less than it was told: %s", error)
                self.close_connection = True
                return
            if window is None:
                return
            self.wfile.write(window)

    def _head(self, status: int, headers: dict[str, str], size_bytes: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size_bytes))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, told: Refusal, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json", **(headers or {})}
        self._send(told.status, kind, told.body)

    def send_error(self, code: int, message: str | None = None, *_: Any, **__: Any) -> None:
        """Refuse a malformed request, and close the connection."""
        self.close_connection = True
        self._refuse(refuse(code, "UNSUPPORTED", message or "the request is malformed"))

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing: who asks for what is nobody's business."""


def _demand_digest(which: str) -> None:
    if not is_digest(which):
        raise NotFoundError("there is nothing without a digest here")


class CacheServer(ThreadingMixIn, BaseServer):
    """Serves a cache on a listening socket, which it owns; the cache stays the caller's."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, cache: BlobCache) -> None:
        super().__init__(listening.getsockname(), _Handler)
        self.cache = cache
        self.at_work = threading.BoundedSemaphore(_MAX_AT_WORK)
        self._listening = listening
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._serving: set[threading.Thread] = set()

    @contextmanager
    def asked(self, question: Question) -> Iterator[UpstreamRepository]:
        """Give the repository that a question is about."""
        registry = question.registry or self.cache.upstream.only_registry
        if registry is None:
            raise NotFoundError("the request does not say of which registry (?ns=HOST)")
        with self.cache.upstream.repository(registry, question.name) as found:
            yield found

    def fileno(self) -> int:
        """Return what is waited on for connections."""
        return self._listening.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection; where that fails, as without descriptors, not again at once."""
        try:
            sock, address = self._listening.accept()
        except OSError:
            time.sleep(_POLL_S)
            raise
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock, address

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Tell whether there is a thread for the connection."""
        with self._lock:
            if len(self._connections) >= MAX_CONNECTIONS:
                return False
            self._connections.add(request)
        return True

    def adopt(self, sock: socket.socket) -> None:
        """Serve a connection that was not taken from the listening socket."""
        if not self.verify_request(sock, None):
            sock.close()
            return
        try:
            self.process_request(sock, None)
        except RuntimeError:
            # No more threads are to be had.
            self.close_request(sock)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection until it ends."""
        thread = threading.current_thread()
        with self._lock:
            self._serving.add(thread)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._serving.discard(thread)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        self.close_request(request)

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._connections.discard(request)
        request.close()

    def handle_error(self, *_: Any) -> None:
        """Say nothing of connections that break: whoever can connect could fill a log."""
        found = sys.exc_info()
        if not isinstance(found[1], OSError):
            LOG.error("an answer failed by a defect", exc_info=found)

    def server_close(self) -> None:
        """Stop listening, cut clients off, and wait for what they began."""
        self._listening.close()
        with self._lock:
            connections, threads = list(self._connections), list(self._serving)
        for each in connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def run(self) -> None:
        """Serve until ``shutdown`` is called from another thread."""
        self.serve_forever(_POLL_S)
