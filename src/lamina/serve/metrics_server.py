"""A page of metrics by HTTP, made anew for each who asks."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer
from typing import Any, Final

from lamina.serve.metrics import CONTENT_TYPE

LOG: Final = logging.getLogger("lamina")

PATHS: Final = ("/metrics", "/v1/metrics")
"""Where stargz-snapshotter has its page, and nydus-snapshotter."""

_IDLE_S: Final = 10.0
_POLL_S: Final = 0.2


class _Handler(BaseHTTPRequestHandler):
    server_version = "lamina-metrics"
    sys_version = ""
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        """Answer with the page."""
        if self.path.partition("?")[0] not in PATHS:
            self.send_error(404)
            return
        page = self.server.page()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing: it is asked every few seconds."""


class _Server(BaseServer):
    """Answers one after the other: a page looks at all mounts, and nobody is in a hurry."""

    def __init__(self, listening: socket.socket, page: Callable[[], bytes]) -> None:
        super().__init__(listening.getsockname(), _Handler)
        self.page = page
        self._listening = listening

    def fileno(self) -> int:
        """Return what is waited on for connections."""
        return self._listening.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection."""
        return self._listening.accept()

    def close_request(self, request: Any) -> None:
        """Close a connection."""
        request.close()

    def handle_error(self, *_: Any) -> None:
        """Go on: whoever asked is gone, or asked what cannot be told now."""
        LOG.info("a page of metrics was not delivered", exc_info=sys.exc_info())


@contextlib.contextmanager
def serving_page(listening: socket.socket, page: Callable[[], bytes]) -> Iterator[None]:
    """Serve on a listening socket, which it owns, in a thread of its own."""
    server = _Server(listening, page)
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        where = listening.getsockname()
        listening.close()
        if isinstance(where, str):
            with contextlib.suppress(OSError):
                os.unlink(where)
