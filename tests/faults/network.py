"""A registry whose answers go wrong on the way: every kind of network fault, each counted.

Which request is hit, and by what, comes from one seeded generator; the order in which requests
arrive does not, so a seed makes runs alike, not equal.
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_registry import Exchange, FakeRegistry, Server, serving

LINGER_NOT = struct.pack("ii", 1, 0)
"""``struct linger`` that makes close(2) reset a connection."""
REDIRECT = re.compile(r"/v2/cdn/blobs/([^?]+)")


@dataclass
class Network(FakeRegistry):
    """A registry and its faults.  ``rate`` is the share of requests that are hit."""

    rate: float = 0.45
    seed: int = 1
    only: str | None = None
    """If set, the one kind of fault that happens."""
    injected: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    silent_until: float = 0.0
    """On the monotonic clock."""
    chance: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"network {self.seed}")
        self.token = "first"

    def draw(self, kinds: dict[str, tuple[float, Fault]]) -> tuple[str, Fault, float] | None:
        """Choose the fault of the next request, if it gets one, and a number of its own for it."""
        with self.lock:
            self.requests += 1
            hit, which, own = self.chance.random(), self.chance.random(), self.chance.random()
        if hit >= self.rate:
            return None
        if self.only is not None:
            return (self.only, kinds[self.only][1], own) if self.only in kinds else None
        which *= sum(weight for weight, _ in kinds.values())
        for name, (weight, fault) in kinds.items():
            which -= weight
            if which < 0:
                return name, fault, own
        return None

    def silence(self, seconds: float) -> None:
        """Answer nothing that is asked from now on, for so long."""
        with self.lock:
            self.silent_until = max(self.silent_until, time.monotonic() + seconds)

    def keep_silent(self) -> bool:
        """Wait as long as there is silence; return whether there was."""
        begun = time.monotonic()
        while time.monotonic() < self.silent_until:
            time.sleep(0.05)
        return time.monotonic() - begun > 0.05

    def count_fault(self, kind: str) -> None:
        """Count a fault that has been injected, or is just about to be."""
        with self.lock:
            self.injected[kind] += 1


class Damaged(Exchange):
    """One request and what becomes of its answer."""

    registry: Network
    broken = False

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.registry.keep_silent():
            self.reset()
            return
        found = self.registry.draw(kinds_for(self.path))
        if found is not None:
            kind, fault, own = found
            if fault(self, own):
                self.registry.count_fault(kind)
                return
        self.serve(self.registry)

    do_GET = do_HEAD = handle_any

    def serve(self, registry: FakeRegistry) -> bool:
        parts = urlsplit(self.path)
        if not REDIRECT.fullmatch(parts.path):
            return super().serve(registry)
        if time.monotonic() > float(parse_qs(parts.query)["until"][0]):
            return self.answer(403, b"signature expired")
        return self.serve_blob(registry, parts.path.rpartition("/")[2])

    def proper(self) -> tuple[int, bytes, dict[str, str]]:
        """The answer that would have been right."""
        kept: list[tuple[int, bytes, dict[str, str]]] = []

        def keep(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
            kept.append((status, body, dict(headers or {})))
            return True

        self.answer = keep  # type: ignore[method-assign]
        try:
            self.serve(self.registry)
        finally:
            del self.answer
        return kept[0]

    def part(self) -> tuple[bytes, dict[str, str]] | None:
        """Body and headers of the right answer if it is a range of a blob."""
        status, body, headers = self.proper()
        return (body, headers) if status == 206 and body else None

    def reset(self) -> bool:
        self.broken = True
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.server.broken.add(self.connection)  # type: ignore[attr-defined]
        return True

    def head(self, length: int, headers: dict[str, str]) -> bytes:
        """The head of a 206."""
        lines = [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {length}", "", ""]
        return ("HTTP/1.1 206 Partial Content\r\n" + "\r\n".join(lines)).encode()


Fault = Callable[[Damaged, float], bool]
"""Does its damage and returns True, or False if the request is not of a kind for it."""


class NetworkServer(Server):
    """Breaks connections the hard way."""

    request_queue_size = 128

    def __init__(self, handler: type[Exchange]) -> None:
        self.broken: set[Any] = set()
        super().__init__(handler)

    def shutdown_request(self, request: Any) -> None:
        if request in self.broken:
            self.broken.discard(request)
            self.open.discard(request)
            self.close_request(request)
            return
        super().shutdown_request(request)


def _reset_before(exchange: Damaged, _own: float) -> bool:
    return exchange.reset()


def _close_before(exchange: Damaged, _own: float) -> bool:
    return exchange.raw(b"")


def _reset_mid_body(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    if found is None:
        return False
    body, headers = found
    exchange.raw(exchange.head(len(body), headers) + body[: int(own * len(body))])
    return exchange.reset()


def _cut_body(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    return found is not None and exchange.raw(
        exchange.head(len(found[0]), found[1]) + found[0][: int(own * len(found[0]))]
    )


def _short_body(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    return found is not None and exchange.answer(
        206, found[0][: int(own * len(found[0]))], found[1]
    )


def _long_body(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    return found is not None and exchange.answer(
        206, found[0] + bytes(1 + int(own * 9999)), found[1]
    )


def _two_answers(exchange: Damaged, own: float) -> bool:
    """A second answer that nobody asked for, at once or when the next request is on its way."""
    found = exchange.part()
    if found is None:
        return False
    body, headers = found
    exchange.answer(206, body, headers)
    exchange.wfile.flush()
    time.sleep(own * 0.01)
    with contextlib.suppress(OSError):
        exchange.wfile.write(exchange.head(len(body), headers) + bytes(len(body)))
        exchange.wfile.flush()
    return True


def _whole_blob(exchange: Damaged, _own: float) -> bool:
    if exchange.part() is None:
        return False
    del exchange.headers["Range"]
    status, body, headers = exchange.proper()
    return exchange.answer(status, body, headers)


def _shifted(exchange: Damaged, own: float, *, admitted: bool) -> bool:
    found = exchange.part()
    if found is None:
        return False
    body, headers = found
    digest = urlsplit(exchange.path).path.rpartition("/")[2]
    data = exchange.registry.blobs[digest]
    first = int(headers["Content-Range"].split()[1].split("-")[0])
    moved = first + 1 + int(own * 8192)
    if moved + len(body) > len(data):
        return False
    if admitted:
        headers["Content-Range"] = f"bytes {moved}-{moved + len(body) - 1}/{len(data)}"
    return exchange.answer(206, data[moved : moved + len(body)], headers)


def _shifted_range(exchange: Damaged, own: float) -> bool:
    return _shifted(exchange, own, admitted=True)


def _shifted_bytes(exchange: Damaged, own: float) -> bool:
    return _shifted(exchange, own, admitted=False)


def _flipped_byte(exchange: Damaged, own: float) -> bool:
    status, body, headers = exchange.proper()
    if status not in (200, 206) or not body:
        return False
    damaged = bytearray(body)
    damaged[int(own * len(body))] ^= 1 << int(own * 1e6) % 8
    return exchange.answer(status, bytes(damaged), headers)


def _zeros(exchange: Damaged, _own: float) -> bool:
    found = exchange.part()
    return found is not None and exchange.answer(206, bytes(len(found[0])), found[1])


def _other_blob(exchange: Damaged, own: float) -> bool:
    """The bytes of another blob, as a cache that mixes things up sends them."""
    found = exchange.part()
    if found is None:
        return False
    body, headers = found
    others = [data for data in exchange.registry.blobs.values() if len(data) > 2 * len(body)]
    if not others:
        return False
    data = others[int(own * len(others))]
    start = int(own * (len(data) - len(body)))
    return exchange.answer(206, data[start : start + len(body)], headers)


def _new_token(exchange: Damaged, own: float) -> bool:
    """All tokens expire, in the middle of everything."""
    exchange.registry.token = f"token-{own}"
    return exchange.serve(exchange.registry)


def _forbidden(exchange: Damaged, _own: float) -> bool:
    return exchange.answer(403, b'{"errors":[{"code":"DENIED"}]}')


def _not_found(exchange: Damaged, _own: float) -> bool:
    return exchange.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')


def _too_many(exchange: Damaged, own: float) -> bool:
    later = time.time() + 1
    pause = "0" if own < 0.6 else "1" if own < 0.8 else email.utils.formatdate(later, usegmt=True)
    return exchange.answer(429, b"slow down", {"Retry-After": pause})


def _server_error(exchange: Damaged, own: float) -> bool:
    return exchange.answer((500, 502, 503, 504)[int(own * 4)], b"<html>not JSON</html>")


def _redirect(exchange: Damaged, lifetime_s: float) -> bool:
    if exchange.part() is None or "/cdn/" in exchange.path:
        return False
    port = exchange.registry.host.rpartition(":")[2]
    digest = urlsplit(exchange.path).path.rpartition("/")[2]
    until = time.monotonic() + lifetime_s
    # Another name of the host is another origin, which is sent no credentials.
    place = f"http://localhost:{port}/v2/cdn/blobs/{digest}?until={until}"
    return exchange.answer(307, b"", {"Location": place})


def _redirect_expired(exchange: Damaged, _own: float) -> bool:
    return _redirect(exchange, -1)


def _redirect_expiring(exchange: Damaged, own: float) -> bool:
    return _redirect(exchange, own * 0.3)


def _redirect_loop(exchange: Damaged, _own: float) -> bool:
    return exchange.answer(302, b"", {"Location": exchange.path})


def _delay(exchange: Damaged, own: float) -> bool:
    time.sleep(0.005 + own * 0.15)
    return exchange.serve(exchange.registry)


def _stall(exchange: Damaged, own: float) -> bool:
    time.sleep(0.8 + own * 2)
    return exchange.reset()


def _stall_mid_body(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    if found is None:
        return False
    body, headers = found
    exchange.raw(exchange.head(len(body), headers) + body[: int(own * len(body))])
    time.sleep(0.8 + own * 2)
    return exchange.reset()


def _trickle(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    if found is None:
        return False
    body, headers = found
    step = max(len(body) // 8, 1)
    exchange.raw(exchange.head(len(body), headers))
    for start in range(0, len(body), step):
        exchange.raw(body[start : start + step])
        time.sleep(own * 0.2)
    return True


def _not_http(exchange: Damaged, own: float) -> bool:
    return exchange.raw(random.Random(own).randbytes(1 + int(own * 3000)))


def _bad_chunks(exchange: Damaged, own: float) -> bool:
    found = exchange.part()
    if found is None:
        return False
    head = exchange.head(0, found[1]).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    size = (b"%x" % len(found[0]), b"-5", b"zz", b"ffffffffffffffff")[int(own * 4)]
    return exchange.raw(head + size + b"\r\n" + found[0] + b"\r\n")


def _wrong_coding(exchange: Damaged, _own: float) -> bool:
    found = exchange.part()
    return found is not None and exchange.answer(
        206, found[0], {**found[1], "Content-Encoding": "gzip"}
    )


def _bad_token_answer(exchange: Damaged, own: float) -> bool:
    return exchange.answer(200, (b"{", b'{"token": ""}', b'{"token": 5}', b"\xff")[int(own * 4)])


EVERYWHERE: dict[str, tuple[float, Fault]] = {
    "reset before answer": (3, _reset_before),
    "closed before answer": (2, _close_before),
    "5xx": (3, _server_error),
    "429 with Retry-After": (1.5, _too_many),
    "delay": (3, _delay),
    "stall": (0.3, _stall),
    "not HTTP": (1.5, _not_http),
    "flipped byte": (8, _flipped_byte),
    "redirect loop": (0.5, _redirect_loop),
}
OF_BLOBS: dict[str, tuple[float, Fault]] = EVERYWHERE | {
    "reset in body": (6, _reset_mid_body),
    "cut body": (4, _cut_body),
    "short body": (4, _short_body),
    "long body": (4, _long_body),
    "two answers": (3, _two_answers),
    "200 instead of 206": (4, _whole_blob),
    "shifted range": (4, _shifted_range),
    "shifted bytes": (4, _shifted_bytes),
    "zeros": (4, _zeros),
    "bytes of another blob": (4, _other_blob),
    "token expires": (3, _new_token),
    "403": (0.3, _forbidden),
    "404": (0.3, _not_found),
    "redirect to expired URL": (2, _redirect_expired),
    "redirect that expires": (2, _redirect_expiring),
    "stall in body": (0.3, _stall_mid_body),
    "trickle": (0.5, _trickle),
    "broken chunked body": (1.5, _bad_chunks),
    "wrong coding": (1, _wrong_coding),
}
OF_TOKENS: dict[str, tuple[float, Fault]] = {
    **{name: EVERYWHERE[name] for name in ("reset before answer", "5xx", "delay", "not HTTP")},
    "malformed token": (2, _bad_token_answer),
}
OF_MANIFESTS = EVERYWHERE | {"token expires": (3, _new_token)}


def kinds_for(path: str) -> dict[str, tuple[float, Fault]]:
    """The faults that a request can get."""
    if path.startswith("/token"):
        return OF_TOKENS
    return OF_BLOBS if "/blobs/" in path else OF_MANIFESTS


@contextlib.contextmanager
def faulty_network(seed: int, rate: float) -> Iterator[Network]:
    """A registry with faults until the block ends."""
    network = Network(seed=seed, rate=rate)
    server = NetworkServer(type("BoundDamaged", (Damaged,), {"registry": network}))
    network.host = f"127.0.0.1:{server.server_port}"
    with serving(server):
        yield network
