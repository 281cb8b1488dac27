"""A registry in this process that can be made to misbehave: cut answers, wrong ranges, redirects,
bad tokens.

It keeps everything in memory and every request it saw.  ``rule`` sets up a misbehaviour for some
requests: an action gets the :class:`Exchange` and returns True if it has answered.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Action = Callable[["Exchange"], bool]


@dataclass
class Rule:
    """An action for the first ``times`` requests that match."""

    method: str
    path: re.Pattern[str]
    action: Action
    times: int


@dataclass
class Seen:
    """A request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeRegistry:
    """State and knobs.  ``host`` is ``127.0.0.1:PORT``."""

    host: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    token: str | None = None
    """If set, requests need this bearer token, which ``/token`` gives out."""
    token_lifetime_s: object = 300
    login: str | None = None
    """``USER:PASSWORD`` that ``/token`` wants."""
    tokens_given: int = 0
    redirect_blobs_to: str | None = None
    """``HOST:PORT`` that blobs are redirected to."""
    ignore_ranges: bool = False
    referrers_page: int | None = None
    """If set, there is the referrers API, with so many entries a page."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def rule(self, method: str, path: str, action: Action, times: int = 1) -> None:
        """Let ``action`` handle the next ``times`` requests of a method and path (a regex)."""
        self.rules.append(Rule(method, re.compile(path), action, times))

    def add_blob(self, data: bytes) -> str:
        """Store a blob; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def count(self, method: str, path: str = "") -> int:
        """How many requests of a method there were whose path has ``path`` in it."""
        return sum(seen.method == method and path in seen.path for seen in self.seen)


class Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    registry: FakeRegistry
    body = b""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
        """Send a whole answer."""
        lines = {"Content-Length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in lines.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def raw(self, data: bytes) -> bool:
        """Send bytes as they are and close the connection."""
        with contextlib.suppress(OSError):
            self.wfile.write(data)
            self.wfile.flush()
        self.close_connection = True
        return True

    def reset(self) -> bool:
        """Break the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def handle_any(self) -> None:
        registry = self.registry
        length = int(self.headers.get("Content-Length") or 0)
        limit = self.read_limit()
        self.body = self.rfile.read(length if limit is None else min(length, limit))
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, self.body)
        with registry.lock:
            registry.seen.append(seen)
            rule = self.matching_rule()
            if rule is not None:
                rule.times -= 1
        if rule is not None and rule.action(self):
            return
        self.serve(registry)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

    def read_limit(self) -> int | None:
        rule = self.matching_rule()
        return getattr(rule.action, "read_limit", None) if rule else None

    def matching_rule(self) -> Rule | None:
        for rule in self.registry.rules:
            if rule.times > 0 and rule.method == self.command and rule.path.search(self.path):
                return rule
        return None

    def serve(self, registry: FakeRegistry) -> bool:
        """The well-behaved answer."""
        parts = urlsplit(self.path)
        if parts.path == "/token":
            return self.serve_token(registry)
        if registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
            realm = f'Bearer realm="http://{registry.host}/token",service="fake",scope="x:y:z"'
            return self.answer(401, b"{}", {"WWW-Authenticate": realm})
        if parts.path == "/v2/":
            return self.answer(200, b"{}")
        if listed := re.fullmatch(r"/v2/(.+?)/referrers/(.+)", parts.path):
            return self.serve_referrers(registry, listed[2], parse_qs(parts.query))
        found = re.fullmatch(r"/v2/(.+?)/(blobs/uploads|blobs|manifests)/(.*)", parts.path)
        if found is None:
            return self.answer(404)
        _, kind, name = found.groups()
        if kind == "blobs":
            return self.serve_blob(registry, name)
        if kind == "manifests":
            return self.serve_manifest(registry, name)
        return self.serve_upload(registry, found[1], name, parse_qs(parts.query))

    def serve_token(self, registry: FakeRegistry) -> bool:
        if registry.login is not None:
            wanted = "Basic " + base64.b64encode(registry.login.encode()).decode()
            form = parse_qs(self.body.decode())
            refreshed = form.get("refresh_token") == [registry.login]
            if self.headers.get("Authorization") != wanted and not refreshed:
                return self.answer(401, b"{}")
        with registry.lock:
            registry.tokens_given += 1
        answer = {"token": registry.token, "expires_in": registry.token_lifetime_s}
        return self.answer(200, json.dumps(answer).encode())

    def serve_blob(self, registry: FakeRegistry, digest: str) -> bool:
        data = registry.blobs.get(digest)
        if data is None:
            error = {"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown to registry"}]}
            return self.answer(404, json.dumps(error).encode())
        if registry.redirect_blobs_to and self.command == "GET":
            place = f"http://{registry.redirect_blobs_to}/v2/cdn/blobs/{digest}?signature=secret"
            return self.answer(307, b"", {"Location": place})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or registry.ignore_ranges:
            return self.answer(200, data)
        first = int(wanted[1])
        last = min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first > last:
            return self.answer(416)
        content_range = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], {"Content-Range": content_range})

    def serve_manifest(self, registry: FakeRegistry, name: str) -> bool:
        if self.command == "PUT":
            digest = "sha256:" + hashlib.sha256(self.body).hexdigest()
            for key in (name, digest):
                registry.manifests[key] = (self.headers["Content-Type"], self.body)
            answer = {"Docker-Content-Digest": digest}
            subject = json.loads(self.body).get("subject")
            if registry.referrers_page and subject:
                answer["OCI-Subject"] = subject["digest"]
            return self.answer(201, b"", answer)
        if name not in registry.manifests:
            return self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        media_type, data = registry.manifests[name]
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        return self.answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": digest})

    def serve_referrers(
        self, registry: FakeRegistry, subject: str, query: dict[str, list[str]]
    ) -> bool:
        size = registry.referrers_page
        if size is None:
            return self.answer(404, b"404 page not found\n")
        found: list[dict[str, Any]] = []
        for name, (media_type, data) in registry.manifests.items():
            document = json.loads(data)
            if name.startswith("sha256:") and document.get("subject", {}).get("digest") == subject:
                kind = document.get("artifactType") or document["config"]["mediaType"]
                entry = {"mediaType": media_type, "digest": name, "size": len(data)}
                found.append({**entry, "artifactType": kind})
        first = int(query.get("from", ["0"])[0])
        index = {"schemaVersion": 2, "manifests": found[first : first + size]}
        headers = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
        if first + size < len(found):
            headers["Link"] = f'<{urlsplit(self.path).path}?from={first + size}>; rel="next"'
        return self.answer(200, json.dumps(index).encode(), headers)

    def serve_upload(
        self, registry: FakeRegistry, name: str, key: str, query: dict[str, list[str]]
    ) -> bool:
        if self.command == "POST":
            digest = query.get("mount", [""])[0]
            if digest in registry.blobs:
                return self.answer(201, b"", {"Docker-Content-Digest": digest})
            key = f"upload-{next(registry.numbers)}"
            registry.uploads[key] = bytearray()
            return self.answer(202, b"", self.progress(name, key, 0))
        if key not in registry.uploads:
            return self.answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        upload = registry.uploads[key]
        if self.command == "DELETE":
            del registry.uploads[key]
            return self.answer(204)
        if self.command == "GET":
            return self.answer(204, b"", self.progress(name, key, len(upload)))
        if self.command == "PATCH":
            first = int((self.headers.get("Content-Range") or "0-").partition("-")[0])
            if first != len(upload):
                return self.answer(416, b"", self.progress(name, key, len(upload)))
            upload += self.body
            return self.answer(202, b"", self.progress(name, key, len(upload)))
        data = bytes(upload) + self.body
        digest = query["digest"][0]
        if digest != "sha256:" + hashlib.sha256(data).hexdigest():
            return self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"wrong"}]}')
        registry.blobs[digest] = data
        del registry.uploads[key]
        return self.answer(201, b"", {"Docker-Content-Digest": digest})

    def progress(self, name: str, key: str, size: int) -> dict[str, str]:
        place = f"/v2/{name}/blobs/uploads/{key}?state={size}"
        return {"Location": place, "Range": f"0-{max(size - 1, 0)}"}


class Server(ThreadingHTTPServer):
    """Serves exchanges on a free port of loopback, in TLS if it has a context."""

    daemon_threads = True

    def __init__(self, handler: type[Exchange], context: ssl.SSLContext | None = None) -> None:
        self.open: set[socket.socket] = set()
        self.context = context
        super().__init__(("127.0.0.1", 0), handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Shake hands, then serve."""
        try:
            if self.context is not None:
                request.settimeout(60)
                request = self.context.wrap_socket(request, server_side=True)
        except OSError:
            request.close()
            return
        self.open.add(request)
        super().process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection."""
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what it is for."""


@contextlib.contextmanager
def serving(server: Server) -> Iterator[None]:
    """Serve until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        for connection in list(server.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()


@contextlib.contextmanager
def fake_registry() -> Iterator[FakeRegistry]:
    """A fake registry until the block ends."""
    registry = FakeRegistry()
    server = Server(type("BoundExchange", (Exchange,), {"registry": registry}))
    registry.host = f"127.0.0.1:{server.server_port}"
    with serving(server):
        yield registry


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Action:
    """Answer with a status."""
    return lambda exchange: exchange.answer(code, body, headers)


def reset() -> Action:
    """Break the connection before the answer."""
    return lambda exchange: exchange.reset()


def raw(data: bytes) -> Action:
    """Answer with bytes that need not be HTTP."""
    return lambda exchange: exchange.raw(data)


def cut_after(count: int) -> Action:
    """The right head, then ``count`` bytes of the body and no more."""

    def action(exchange: Exchange) -> bool:
        written = exchange.wfile.write

        def write(data: bytes) -> int:
            if data.startswith(b"HTTP/"):
                return written(data)
            written(data[:count])
            exchange.reset()
            return len(data)

        exchange.wfile.write = write  # type: ignore[method-assign]
        exchange.serve(exchange.registry)
        return True

    return action


def take_part(count: int) -> Action:
    """Store ``count`` bytes of the request's body in the upload, then break the connection."""

    def action(exchange: Exchange) -> bool:
        key = urlsplit(exchange.path).path.rpartition("/")[2]
        exchange.registry.uploads[key] += exchange.body
        return exchange.reset()

    action.read_limit = count  # type: ignore[attr-defined]
    return action


def stall(seconds: float) -> Action:
    """Answer nothing for a while, then break the connection."""

    def action(exchange: Exchange) -> bool:
        time.sleep(seconds)
        return exchange.reset()

    return action
