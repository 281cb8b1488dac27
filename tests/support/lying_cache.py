"""A cache of a host that lies: it answers as another one does, but for what it changes."""

from __future__ import annotations

import hashlib
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What the honest cache has answered."""

    path: str
    status: int
    body: bytes


Change = Callable[[Answer], bytes]
"""Returns the body to answer with in its place."""


@contextmanager
def lying_cache(honest: str, change: Change) -> Iterator[str]:
    """Serve on loopback until the block ends; its ``HOST:PORT``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            connection = http.client.HTTPConnection(honest, timeout=60)
            try:
                wanted = self.headers.get("Range")
                connection.request(
                    self.command, self.path, headers={"Range": wanted} if wanted else {}
                )
                found = connection.getresponse()
                body = found.read()
            finally:
                connection.close()
            if self.command == "GET" and found.status in (200, 206):
                body = change(Answer(self.path, found.status, body))
            self.send_response(found.status)
            for name, value in found.getheaders():
                if name == "Docker-Content-Digest" and "/manifests/" in self.path and body:
                    value = f"sha256:{hashlib.sha256(body).hexdigest()}"
                if name.lower() not in ("content-length", "connection", "server", "date"):
                    self.send_header(name, value)
            size = found.getheader("Content-Length") if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
