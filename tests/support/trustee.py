"""A key broker that answers as trustee's does (commit 78962cd, seen in August 2026): every refusal
is a 401 with a problem that hides its cause, and what is not there is ``PluginInternalError``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from lamina.trust.broker import protocol
from lamina.trust.broker.connection import Answer
from lamina.trust.crypto import jwe
from lamina.trust.crypto.jwk import public_from_jwk
from lamina.trust.crypto.keys import PublicKey
from lamina.trust.strict_json import decode_base64, encode_base64

Policy = Callable[[list[str], dict[str, str]], bool]


@dataclass
class FakeTrustee:
    """Stands for an endpoint.  ``policy`` is asked with the path and the query of a resource."""

    resources: dict[str, bytes] = field(default_factory=dict)
    policy: Policy = lambda path, query: True
    requests: list[str] = field(default_factory=list)
    attestations: list[dict[str, Any]] = field(default_factory=list)
    forgets_sessions: bool = False
    forgets_tokens: bool = False

    def __post_init__(self) -> None:
        self._nonces: dict[str, str] = {}
        self._tees: dict[str, str] = {}
        self._keys: dict[str, dict[str, str]] = {}
        self._tokens: set[str] = set()

    def __str__(self) -> str:
        return "https://trustee.example"

    def restart(self) -> None:
        """All sessions are lost."""
        self._nonces.clear()
        self._keys.clear()

    def expire_tokens(self) -> None:
        """Sessions are known, and their tokens too old."""
        self._tokens.clear()

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        again: bool = True,
    ) -> Answer:
        """Answer as the service does."""
        path, _, query = path.partition("?")
        name, *parts = path.removeprefix(protocol.PREFIX + "/").split("/")
        self.requests.append(f"{method} {name}")
        cookie = headers.get("Cookie", "").partition("=")[2]
        match method, name:
            case "POST", "auth":
                return self._auth(json.loads(body or b""))
            case "POST", "attest":
                return self._attest(cookie, json.loads(body or b""))
            case "GET", "resource":
                return self._resource(cookie, [unquote(part) for part in parts], query)
        return refusal("PluginNotFound", f"Plugin {name} not found", 404)

    def _auth(self, document: dict[str, Any]) -> Answer:
        if document["version"] != protocol.VERSION:
            return refusal("AttestationError", "Attestation error: RCAR handshake Auth failed")
        cookie, nonce = secrets.token_hex(16), encode_base64(secrets.token_bytes(32))
        self._nonces[cookie], self._tees[cookie] = nonce, document["tee"]
        head = f"{protocol.SESSION_COOKIE}={cookie}; Expires=Sun, 29 Nov 2026 18:29:20 GMT"
        answer = {"nonce": nonce, "extra-params": ""}
        return Answer(200, {"set-cookie": head}, json.dumps(answer).encode())

    def _attest(self, cookie: str, document: dict[str, Any]) -> Answer:
        runtime, evidence = document["runtime-data"], document["tee-evidence"]
        report = protocol.report_digest(runtime, "sha384", evidence["additional_evidence"])
        if (
            runtime["nonce"] != self._nonces.get(cookie)
            or not _is_init_data(document["init-data"])
            or not _READERS[self._tees[cookie]](evidence["primary_evidence"], report)
        ):
            return refusal("AttestationError", "Attestation error: RCAR handshake Attest failed")
        self.attestations.append(document)
        self._keys[cookie] = runtime["tee-pubkey"]
        self._tokens.add(cookie)
        return Answer(200, {}, b'{"token":"e30.e30.e30"}')

    def _resource(self, cookie: str, path: list[str], query: str) -> Answer:
        if cookie not in self._keys or self.forgets_sessions:
            return refusal("TokenNotFound", "Attestation token not found")
        if cookie not in self._tokens or self.forgets_tokens:
            return refusal("TokenVerifierError", "Token Verifier error")
        if not self.policy(path, dict(parse_qsl(query))):
            return refusal("PolicyDeny", "Access denied by policy")
        value = self.resources.get("/".join(path))
        if value is None:
            return refusal("PluginInternalError", "Plugin internal error")
        key, algorithm = public_from_jwk(self._keys[cookie], "key")
        return Answer(200, {}, jwe.encrypt(value, [PublicKey(key, "key", algorithm)]))


def refusal(name: str, detail: str, status: int = 401) -> Answer:
    """Trustee's answer to what it does not do."""
    problem = {"type": protocol.PROBLEM + name, "detail": detail}
    return Answer(status, {}, json.dumps(problem).encode())


def _is_init_data(value: Any) -> bool:
    return value is None or (value["format"] == "toml" and 'version = "0.1.0"' in value["body"])


def _reads_sample(evidence: Any, report: bytes) -> bool:
    return "svn" in evidence and decode_base64(evidence["report_data"], "report") == report


def _reads_tdx(evidence: Any, report: bytes) -> bool:
    log = evidence["cc_eventlog"]
    quote = decode_base64(evidence["quote"], "quote")
    return quote.endswith(report.ljust(64, b"\0")) and (log is None or isinstance(log, str))


def _reads_snp(evidence: Any, report: bytes) -> bool:
    """Structures as objects, byte fields as lists of numbers; a text in their place is refused."""
    found = evidence["attestation_report"]
    if not isinstance(found, dict) or not isinstance(evidence.get("cert_chain", []), list | None):
        return False
    return found["report_data"] == list(report.ljust(64, b"\0"))


_READERS: dict[str, Callable[[Any, bytes], bool]] = {
    "sample": _reads_sample,
    "tdx": _reads_tdx,
    "snp": _reads_snp,
}
