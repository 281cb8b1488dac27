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
    _fetching: dict[str, socket.socket] = field(default_factory=dict)
    """Who gets a blob that will be kept."""
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
            other = self._fetching.get(digest)
            # Whoever has hung up is out of the way, however late its thread notices.
            keeps = not self.never_keeps and (other is None or _has_hung_up(other))
            if keeps:
                self._fetching[digest] = exchange.connection
            self.whole_answers.append(digest)
        data = bytearray(self.registry.blobs[digest])
        if self.damage_at is not None and self.damage_at < len(data):
            data[self.damage_at] ^= 1
        try:
            self._send(exchange, bytes(data), digest if keeps else None)
        except OSError:
            self.kept.discard(digest)
            exchange.reset()
        finally:
            with self._lock:
                if self._fetching.get(digest) is exchange.connection:
                    del self._fetching[digest]
        return True

    def _send(self, exchange: Exchange, data: bytes, kept: str | None) -> None:
        """Send a whole blob, which is there for others once its reader can have seen its end."""
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
                return
            part = data[start : start + PART_BYTES]
            if kept is not None and start + PART_BYTES >= len(data):
                self.kept.add(kept)
            exchange.wfile.write(part)
            with self._lock:
                self.sent_bytes += len(part)


def _has_hung_up(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
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
