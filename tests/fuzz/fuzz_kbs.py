"""Requests to the key broker, its refusals, queries and requests to the key provider, lines of its
audit log, reports and certificates of SNP, from any bytes.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from lamina.errors import Error
from lamina.kbs.audit_summary import summarize
from lamina.kbs.broker import Broker, Request
from lamina.trust.broker import protocol
from lamina.trust.broker.kbs_packet import parse_packet
from lamina.trust.broker.provider import answer_request, parse_parameter
from lamina.trust.broker.snp_report import REPORT_BYTES, encode_certificates, encode_report

_LINES: list[dict[str, Any]] = []
_AUDIT = SimpleNamespace(write=lambda event, **fields: _LINES.append({"event": event, **fields}))
_BROKER = Broker(SimpleNamespace(entries={}), _AUDIT)  # type: ignore[arg-type]


class _Provider:
    """Stands for one that has a broker."""

    def wrap(self, options: bytes, parameter: str) -> bytes:
        """Only what the parameter must be."""
        parse_parameter(parameter)
        return options

    def unwrap(self, packet: bytes, parameter: str) -> bytes:
        """Only what the packet must be."""
        return parse_packet(packet).wrapped


def _encode_report(data: bytes) -> object:
    return encode_report(data.ljust(REPORT_BYTES, b"\0")[:REPORT_BYTES])


def _ask(method: str, target: str, body: bytes, cookie: str) -> int:
    _LINES.clear()
    headers = {"cookie": f"{protocol.SESSION_COOKIE}={cookie}"}
    reply = _BROKER.handle(Request(method, target, headers, body, "127.0.0.1"))
    json.loads(reply.body)
    assert len(_LINES) == 1, "every request is written down"
    json.dumps(_LINES[0])
    return reply.status


def target(data: bytes) -> None:
    """Nothing gets a key, and everything is answered with JSON."""
    session = _BROKER.sessions.begin("sample", "sha384")
    try:
        assert _ask("POST", "/kbs/v0/auth", data, "") in (200, 400, 401)
        body = data.replace(b"NONCE", session.nonce.encode())
        assert _ask("POST", "/kbs/v0/attest", body, session.identifier) in (200, 400, 401)
        path = data.decode("latin-1")
        status = _ask("GET", f"/kbs/v0/resource/{path}", b"", session.identifier)
        assert status in (400, 401, 404)
        protocol.read_problem(data)
        for parse in (protocol.parse_claims, parse_parameter):
            try:
                parse(path)
            except Error:
                continue
        for encode in (_encode_report, encode_certificates):
            try:
                json.dumps(encode(data))
            except Error:
                continue
        lines = data.split(b"\n")
        assert sum(line["count"] for line in summarize(lines)) >= len(lines), "none is left out"
        answer_request(_Provider(), data)  # type: ignore[arg-type]
    except Error:
        return


def seeds() -> list[bytes]:
    """One of each kind of document."""
    key = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "A" * 43, "y": "A" * 43}
    runtime = {"nonce": "NONCE", "tee-pubkey": key}
    evidence = {"primary_evidence": {"svn": "1", "report_data": "AAAA"}}
    documents: list[Any] = [
        {"version": "0.4.0", "tee": "sample", "extra-params": {}},
        {"runtime-data": runtime, "tee-evidence": evidence, "init-data": None},
        {"type": f"{protocol.PROBLEM}PolicyDeny", "detail": "no"},
        {"op": "keyunwrap", "keyunwrapparams": {"annotation": "e30="}},
        {"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {"a": ["YQ=="]}}, "optsdata": ""}},
    ]
    texts = [b"tenant/kek/7?release=7", b"release=7&image-digest=x", b"keyid=kbs:///a/b/c"]
    texts += [b"signed=%7B%22release%22%3A7%7D", b"tenant/kek/7?signed={%22release%22:7}"]
    line = {"time": 5.5, "event": "auth", "client": "192.0.2.1", "result": "ok", "count": 3}
    documents.append(line)
    texts += [b"\x03\0\0\0" + bytes(40), b"\x63\xda\x75\x8d" + bytes(12) + b"\x18\0\0\0\1\0\0\0"]
    return [*(json.dumps(document).encode() for document in documents), *texts]
