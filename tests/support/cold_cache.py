"""A pull-through cache as distribution 3 is one, in this process.

A blob that it has not got is answered with status 200 and all of it, whatever range was asked for,
and is kept only if its reader takes all; while one request does so, others get the blob without its
being kept.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.fake_registry import Exchange, FakeRegistry, fake_registry

PART_BYTES = 64 << 10


@dataclass
class ColdCache:
    """State and knobs; ``registry`` is what is behind it, and has ``host``."""

    registry: FakeRegistry
    kept: set[str] = field(default_factory=set)
    never_keeps: bool = False
    whole_answers: list[str] = field(default_factory=list)
    """The digest of each blob that was sent whole, once a request."""
    sent_bytes: int = 0
    """Bytes of whole answers that were sent."""
    pause_at: int | None = None
    """Nothing is sent from this byte of a blob on until :attr:`released`."""
    released: threading.Event = field(default_factory=threading.Event)
    break_at: int | None = None
    """The next whole answer breaks off there, once."""
    damage_at: int | None = None
    """The byte there is sent wrong."""
    _fetching: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reference(self, name: str = "app") -> str:
        return f"docker://{self.registry.host}/{name}:latest"

    def add_layout(self, layout: Path) -> list[str]:
        """Have behind it what an OCI layout has; returns the digests of the blobs."""
        import json

        for path in (layout / "blobs" / "sha256").iterdir():
            self.registry.add_blob(path.read_bytes())
        index = json.loads((layout / "index.json").read_text())
        for entry in index["manifests"]:
            data = self.registry.blobs[entry["digest"]]
            name = entry.get("annotations", {}).get("org.opencontainers.image.ref.name")
            for key in filter(None, (name, entry["digest"])):
                self.registry.manifests[key] = entry["mediaType"], data
        for digest, data in list(self.registry.blobs.items()):
            with contextlib.suppress(ValueError):
                document = json.loads(data)
                if isinstance(document, dict) and "mediaType" in document:
                    self.registry.manifests.setdefault(digest, (document["mediaType"], data))
        return list(self.registry.blobs)

    def serve(self, exchange: Exchange) -> bool:
        digest = exchange.path.rpartition("/")[2]
        with self._lock:
            if digest in self.kept or digest not in self.registry.blobs:
                return False
            keeps = digest not in self._fetching and not self.never_keeps
            if keeps:
                self._fetching.add(digest)
            self.whole_answers.append(digest)
        data = bytearray(self.registry.blobs[digest])
        if self.damage_at is not None and self.damage_at < len(data):
            data[self.damage_at] ^= 1
        try:
            sent_all = self._send(exchange, bytes(data))
        except OSError:
            sent_all = exchange.reset() and False
        finally:
            with self._lock:
                if keeps:
                    self._fetching.discard(digest)
        if keeps and sent_all:
            self.kept.add(digest)
        return True

    def _send(self, exchange: Exchange, data: bytes) -> bool:
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PART_BYTES)
        exchange.send_response(200)
        exchange.send_header("Content-Length", str(len(data)))
        exchange.end_headers()
        for start in range(0, len(data), PART_BYTES):
            if self.pause_at is not None and start >= self.pause_at:
                self.released.wait(60)
            if self.break_at is not None and start >= self.break_at:
                self.break_at = None
                exchange.reset()
                return False
            part = data[start : start + PART_BYTES]
            exchange.wfile.write(part)
            with self._lock:
                self.sent_bytes += len(part)
        return True


@contextlib.contextmanager
def cold_cache(layout: Path | None = None) -> Iterator[ColdCache]:
    """A cache that has nothing yet, until the block ends."""
    with fake_registry() as registry:
        cache = ColdCache(registry)
        registry.rule("GET", "/blobs/sha256:", cache.serve, times=1 << 30)
        if layout is not None:
            cache.add_layout(layout)
        try:
            yield cache
        finally:
            cache.released.set()
