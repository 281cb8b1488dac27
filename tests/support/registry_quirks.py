"""What real registries do that the specification does not say, as actions of the fake registry.

Give one to ``FakeRegistry.rule`` for as many requests as the registry shall have the quirk.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_registry import Action, Exchange, FakeRegistry

ALWAYS = 10_000
"""How many requests a quirk is for that does not go away."""


def answering(status: int | None = None, *, without: Collection[str] = (), **added: str) -> Action:
    """The right answer, if it is a success, with another status, fewer or other headers."""

    def action(exchange: Exchange) -> bool:
        right = exchange.answer

        def answer(code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
            if code >= 300:
                return right(code, body, headers)
            lines = {name: text for name, text in (headers or {}).items() if name not in without}
            lines.update({name.replace("_", "-"): text for name, text in added.items()})
            return right(status or code, body, lines)

        exchange.answer = answer  # type: ignore[method-assign]
        try:
            return exchange.serve(exchange.registry)
        finally:
            del exchange.answer

    return action


def capped(limit_bytes: int, status: int) -> Action:
    """A body over a limit is refused."""

    def action(exchange: Exchange) -> bool:
        if len(exchange.body) <= limit_bytes:
            return False
        error = {"code": "TOO_LARGE", "message": f"more than {limit_bytes} bytes"}
        return exchange.answer(status, json.dumps({"errors": [error]}).encode())

    return action


def too_small(limit_bytes: int) -> Action:
    """A chunk below a limit is refused, the last one too."""

    def action(exchange: Exchange) -> bool:
        return len(exchange.body) < limit_bytes and exchange.answer(416)

    return action


def only_the_first_chunk(exchange: Exchange) -> bool:
    """What a second PATCH brings is dropped, and the answer is as if nothing were wrong."""
    key = urlsplit(exchange.path).path.rpartition("/")[2]
    upload = exchange.registry.uploads.get(key)
    if not upload:
        return False
    name = exchange.path.removeprefix("/v2/").partition("/blobs/")[0]
    return exchange.answer(202, b"", exchange.progress(name, key, len(upload)))


def closed_ranges_only(total: str) -> Action:
    """A range without an end is refused, with some word on how much there is."""

    def action(exchange: Exchange) -> bool:
        if not (exchange.headers.get("Range") or "").endswith("-"):
            return False
        return exchange.answer(416, b"", {"Content-Range": total} if total else {})

    return action


def stores_sha512_as_sha256(*, both: bool, says: str = "sha256") -> Action:
    """An upload by sha512 is verified and kept by its sha256, with ``both`` by either; ``says`` is
    what the answer calls it by.
    """

    def action(exchange: Exchange) -> bool:
        registry = exchange.registry
        parts = urlsplit(exchange.path)
        wanted = parse_qs(parts.query)["digest"][0]
        data = bytes(registry.uploads.pop(parts.path.rpartition("/")[2])) + exchange.body
        if wanted != "sha512:" + hashlib.sha512(data).hexdigest():
            return exchange.answer(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
        digest = registry.add_blob(data)
        if both:
            registry.blobs[wanted] = data
        named = digest if says == "sha256" else wanted
        return exchange.answer(201, b"", {"Docker-Content-Digest": named})

    return action


def made_by_a_push(registry: FakeRegistry) -> None:
    """Let nobody look into a repository that is not there but who may push, which makes it."""
    registry.token = "push"

    def token(exchange: Exchange) -> bool:
        # Of two scopes of a repository the last counts.
        scope = parse_qs(urlsplit(exchange.path).query)["scope"][-1]
        may = "push" if "push" in scope else "pull"
        registry.tokens_given += 1
        return exchange.answer(200, json.dumps({"token": may, "expires_in": 300}).encode())

    def challenge(exchange: Exchange) -> bool:
        if exchange.headers.get("Authorization") == "Bearer push":
            return False
        name = re.split("/(?:blobs|manifests)/", exchange.path.removeprefix("/v2/"))[0]
        realm = f'Bearer realm="http://{registry.host}/token",scope="repository:{name}:pull"'
        return exchange.answer(401, b"", {"WWW-Authenticate": realm})

    registry.rule("GET", "^/token", token, ALWAYS)
    for method in ("GET", "HEAD", "POST", "PATCH", "PUT"):
        registry.rule(method, "^/v2/.", challenge, ALWAYS)
