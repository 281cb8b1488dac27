"""Client and broker together over HTTPS: who gets keys, and what else is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from jwcrypto import jwe as jwcrypto_jwe
from jwcrypto import jwk as jwcrypto_jwk
from tests.support.key_broker import RunningBroker
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import (
    Error,
    FetchError,
    NotFoundError,
    StoreError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from lamina.kbs import server as server_module
from lamina.kbs.broker import Reply, Request
from lamina.kbs.rules import Rule
from lamina.trust.broker import protocol
from lamina.trust.broker.client import KbsClient
from lamina.trust.broker.connection import parse_endpoint
from lamina.trust.broker.evidence import SampleEvidence
from lamina.trust.broker.kbs_packet import parse_resource
from lamina.trust.broker.protocol import Claims

KEY = bytes(range(32))
URI = "kbs:///tenant/image-kek/7"
RESOURCE = parse_resource(URI)
IMAGE, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


@pytest.fixture
def broker(running: RunningBroker) -> RunningBroker:
    running.put(URI, KEY)
    return running


def test_a_guest_gets_its_key(broker: RunningBroker) -> None:
    client = broker.client()
    assert client.fetch(RESOURCE).reveal() == KEY
    assert client.fetch(RESOURCE, Claims(IMAGE, 7)).reveal() == KEY
    events = [line["event"] for line in broker.audit()[-4:]]
    assert events == ["auth", "attest", "resource", "resource"], "one session for both"


def test_resources_that_are_not_there(broker: RunningBroker) -> None:
    with pytest.raises(NotFoundError, match="kbs:///tenant/image-kek/8"):
        broker.client().fetch(parse_resource("kbs:///tenant/image-kek/8"))


def test_a_resource_without_a_rule_is_for_nobody(broker: RunningBroker) -> None:
    broker.put(URI, KEY, None)
    with pytest.raises(TrustError, match="policy does not allow"):
        broker.client().fetch(RESOURCE)


@pytest.mark.parametrize(
    ("rule", "evidence", "claims", "message"),
    [
        (Rule(tees=("tdx",)), SampleEvidence(), Claims(), "this kind of machine"),
        (Rule(measurements=("m1",)), SampleEvidence("m2"), Claims(), "runs something else"),
        (Rule(measurements=("m1",)), SampleEvidence(), Claims(), "runs something else"),
        (Rule(images=(IMAGE,)), SampleEvidence(), Claims(OTHER), "does not allow this image"),
        (Rule(images=(IMAGE,)), SampleEvidence(), Claims(), "does not allow this image"),
        (Rule(minimum_release=7), SampleEvidence(), Claims(IMAGE, 6), "too old"),
        (Rule(minimum_release=7), SampleEvidence(), Claims(IMAGE), "too old"),
    ],
    ids=["tee", "measurement", "no-measurement", "image", "no-image", "release", "no-release"],
)
def test_rules_refuse_each_in_its_own_words(
    broker: RunningBroker, rule: Rule, evidence: SampleEvidence, claims: Claims, message: str
) -> None:
    broker.put(URI, KEY, rule)
    with pytest.raises(TrustError, match=message):
        broker.client(evidence).fetch(RESOURCE, claims)
    last = broker.audit()[-1]
    assert last["result"] == "refused"
    assert last["resource"] == URI


def test_rollback_to_an_older_signed_image_gets_no_key(broker: RunningBroker) -> None:
    """Raising the minimum, or removing the key of a release, ends it for running guests too."""
    client = broker.client()
    broker.put(URI, KEY, Rule(minimum_release=6))
    assert client.fetch(RESOURCE, Claims(IMAGE, 6)).reveal() == KEY
    broker.put(URI, KEY, Rule(minimum_release=7))
    with pytest.raises(TrustError, match="too old"):
        client.fetch(RESOURCE, Claims(IMAGE, 6))
    broker.broker.store.change(RESOURCE, lambda _: None)
    with pytest.raises(NotFoundError):
        client.fetch(RESOURCE, Claims(IMAGE, 7))


def test_revoked_signer_loses_its_keys_at_once(broker: RunningBroker) -> None:
    client = broker.client()
    assert client.fetch(RESOURCE).reveal() == KEY
    broker.put(URI, KEY, None)
    with pytest.raises(TrustError, match="policy does not allow"):
        client.fetch(RESOURCE)


def test_a_store_that_cannot_be_read_gives_no_key(broker: RunningBroker) -> None:
    client = broker.client()
    client.fetch(RESOURCE)
    path = Path(broker.broker.store.path)
    sound = path.read_bytes()
    path.write_bytes(b"damaged")
    try:
        with pytest.raises(FetchError, match="InternalError"):
            client.fetch(RESOURCE)
    finally:
        path.write_bytes(sound)
    *_, error, last = broker.audit()
    assert (error["event"], error["reason"]) == ("error", "FormatError")
    assert (last["event"], last["reason"]) == ("resource", "InternalError")


def test_a_rule_that_is_met(broker: RunningBroker) -> None:
    broker.put(URI, KEY, Rule(("sample",), ("m1",), (OTHER, IMAGE), 7))
    client = broker.client(SampleEvidence("m1"))
    assert client.fetch(RESOURCE, Claims(IMAGE, 7)).reveal() == KEY
    assert client.fetch(RESOURCE, Claims(OTHER, 800)).reveal() == KEY


def test_nothing_secret_is_logged(broker: RunningBroker) -> None:
    secret = b"a key that is quite unmistakable"
    broker.put(URI, secret)
    client = broker.client()
    client.fetch(RESOURCE)
    session = client._session
    assert session is not None
    text = broker.audit_file.read_text()
    store = Path(broker.broker.store.path).read_bytes()
    for value in (secret, base64.b64encode(secret), secret.hex().encode()):
        assert value not in text.encode()
        assert value not in store
    assert b"image-kek" not in store
    assert session.cookie not in text
    assert broker.audit_file.stat().st_mode & 0o777 == 0o600
    for shown in (repr(client), repr(broker.broker), repr(session), str(broker.broker.store)):
        assert "unmistakable" not in shown
        assert session.cookie not in shown


def test_what_cannot_be_audited_is_not_done(
    broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = broker.client()
    client.fetch(RESOURCE)

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(broker.broker.audit, "write", full)
    with pytest.raises(FetchError, match="audit log"):
        client.fetch(RESOURCE)


# The wire, spoken by hand.


class Guest:
    """A guest that may lie in any part of an attestation."""

    def __init__(self, running: RunningBroker) -> None:
        self.broker = running.broker
        self.key = make_key("P-256")
        jwk = jwcrypto_jwk.JWK.from_pyca(self.key.key.public_key()).export_public(as_dict=True)
        self.jwk = {name: jwk[name] for name in ("kty", "crv", "x", "y")}
        self.jwk["alg"] = "ECDH-ES+A256KW"
        self.cookie = ""
        self.address = "127.0.0.1"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        lines = {"cookie": f"kbs-session-id={self.cookie}", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.broker.handle(Request(method, f"/kbs/v0{path}", lines, data, self.address))

    def challenge(self, **changes: Any) -> str:
        reply = self.ask("POST", "/auth", {"version": "0.4.0", "tee": "sample", **changes})
        assert reply.status == 200, reply.body
        self.cookie = reply.cookie
        return str(json.loads(reply.body)["nonce"])

    def attest(
        self, nonce: str, report: bytes | None = None, init_data: Any = None, **runtime: Any
    ) -> Reply:
        data = {"nonce": nonce, "tee-pubkey": self.jwk, **runtime}
        if report is None:
            report = protocol.report_digest(data, "sha384")
        evidence = {"svn": "1", "report_data": base64.b64encode(report).decode()}
        wrapped = {"primary_evidence": evidence, "additional_evidence": ""}
        return self.ask(
            "POST",
            "/attest",
            {"init-data": init_data, "runtime-data": data, "tee-evidence": wrapped},
        )


def problem(reply: Reply) -> tuple[int, str]:
    return reply.status, protocol.read_problem(reply.body).name


@pytest.fixture
def guest(broker: RunningBroker) -> Guest:
    return Guest(broker)


def test_the_whole_conversation_with_another_implementation_of_jwe(guest: Guest) -> None:
    reply = guest.attest(guest.challenge())
    assert reply.status == 200
    token = json.loads(reply.body)["token"]
    assert len(token.split(".")) == 3
    # A second attestation gives the old token.
    assert guest.attest("other").body == reply.body
    for headers in ({}, {"cookie": "", "authorization": f"Bearer {token}"}):
        answer = guest.ask("GET", "/resource/tenant/image-kek/7", **headers)
        assert answer.status == 200
        opened = jwcrypto_jwe.JWE()
        opened.deserialize(answer.body.decode(), jwcrypto_jwk.JWK.from_pyca(guest.key.key))
        assert opened.payload == KEY


def test_the_order_of_the_jwe_header(guest: Guest) -> None:
    """Clients in Rust encode the header again and compare."""
    assert guest.attest(guest.challenge()).status == 200
    answer = json.loads(guest.ask("GET", "/resource/tenant/image-kek/7").body)
    assert list(answer) == ["protected", "encrypted_key", "iv", "ciphertext", "tag"]
    header = base64.urlsafe_b64decode(answer["protected"] + "==").decode()
    document = json.loads(header)
    assert list(document) == ["alg", "enc", "epk"]
    assert list(document["epk"]) == ["crv", "kty", "x", "y"]
    assert header == json.dumps(document, separators=(",", ":"))
    assert (document["alg"], document["enc"]) == ("ECDH-ES+A256KW", "A256GCM")


def test_the_report_data_is_checked(guest: Guest) -> None:
    assert problem(guest.attest(guest.challenge(), bytes(48))) == (401, "AttestationFailed")
    nonce = guest.challenge()
    other = make_key("P-256", 1)
    jwk = jwcrypto_jwk.JWK.from_pyca(other.key.public_key()).export_public(as_dict=True)
    stolen = protocol.report_digest({"nonce": nonce, "tee-pubkey": guest.jwk}, "sha384")
    swapped = {**guest.jwk, "x": jwk["x"], "y": jwk["y"]}
    reply = guest.attest(nonce, stolen, **{"tee-pubkey": swapped})
    assert problem(reply) == (401, "AttestationFailed")


def test_a_wrong_nonce(guest: Guest) -> None:
    guest.challenge()
    other = protocol.strict_json.encode_base64(bytes(32))
    assert problem(guest.attest(other)) == (401, "AttestationFailed")


def test_a_nonce_serves_once(guest: Guest) -> None:
    nonce = guest.challenge()
    assert problem(guest.attest(nonce, bytes(48))) == (401, "AttestationFailed")
    assert problem(guest.attest(nonce)) == (401, "NonceUsed")
    # Evidence of one session is worth nothing in another.
    guest.challenge()
    assert problem(guest.attest(nonce)) == (401, "AttestationFailed")


def test_a_wrong_cookie(guest: Guest) -> None:
    nonce = guest.challenge()
    for cookie in ("0" * 32, "", "x", guest.cookie.upper() + "é"):
        guest.cookie = cookie
        assert problem(guest.attest(nonce)) == (401, "InvalidSession")
        reply = guest.ask("GET", "/resource/tenant/image-kek/7")
        assert problem(reply) == (401, "InvalidSession")


def test_an_expired_session(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    nonce = guest.challenge()
    assert guest.attest(nonce).status == 200
    assert guest.ask("GET", "/resource/tenant/image-kek/7").status == 200
    later = time.monotonic() + 1000
    monkeypatch.setattr(guest.broker.sessions, "clock", lambda: later)
    assert problem(guest.ask("GET", "/resource/tenant/image-kek/7")) == (401, "InvalidSession")
    assert problem(guest.attest(nonce)) == (401, "InvalidSession")


def test_a_session_that_is_not_attested(guest: Guest) -> None:
    guest.challenge()
    reply = guest.ask("GET", "/resource/tenant/image-kek/7")
    assert problem(reply) == (401, "Unauthenticated")


def test_stale_tokens_and_those_of_others(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = guest.attest(guest.challenge())
    token = json.loads(reply.body)["token"]
    head, claims, signature = token.split(".")
    forged = json.loads(base64.urlsafe_b64decode(claims + "=="))
    forged["exp"] += 1000
    changed = base64.urlsafe_b64encode(json.dumps(forged).encode()).rstrip(b"=").decode()
    bad = [f"{head}.{changed}.{signature}", f"{head}.{claims}.", "a.b.c", "", "é.é.é"]
    bad.append(f"{head}.{claims}.{'A' * 86}")
    for text in bad:
        reply = guest.ask(
            "GET", "/resource/tenant/image-kek/7", authorization=f"Bearer {text}", cookie=""
        )
        assert problem(reply) == (401, "TokenVerifierError")
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    reply = guest.ask(
        "GET", "/resource/tenant/image-kek/7", authorization=f"Bearer {token}", cookie=""
    )
    assert problem(reply) == (401, "TokenVerifierError")


@pytest.mark.parametrize(
    "path",
    [
        "/resource/tenant/image-kek",
        "/resource/tenant/image-kek/7/8",
        "/resource/tenant/../7",
        "/resource/tenant/.kek/7",
        "/resource/tenant/a%2fb/7",
        "/resource/tenant/image kek/7",
        "/resource//image-kek/7",
        "/resource/tenant/image-kek/7?release=x",
        "/resource/tenant/image-kek/7?release=1&release=2",
        "/resource/tenant/image-kek/7?release=" + "9" * 5000,
        "/resource/tenant/image-kek/7?image-digest=abc",
        "/resource/tenant/image-kek/7?other=1",
    ],
)
def test_names_of_resources(guest: Guest, path: str) -> None:
    assert guest.attest(guest.challenge()).status == 200
    assert problem(guest.ask("GET", path)) == (400, "InvalidRequestPath")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/auth"),
        ("POST", "/resource/tenant/image-kek/7"),
        ("DELETE", "/resource/tenant/image-kek/7"),
        ("POST", "/attestation-policy"),
        ("GET", "/../../etc/passwd"),
        ("GET", ""),
    ],
)
def test_other_paths(guest: Guest, method: str, path: str) -> None:
    assert problem(guest.ask(method, path, {})) == (404, "PluginNotFound")


@pytest.mark.parametrize(
    "document",
    [
        {"version": "0.1.1", "tee": "sample"},
        {"version": "0.4.0"},
        {"version": "0.4.0", "tee": 5},
        {"version": "0.4.0", "tee": "S" * 100},
        {"version": "0.4.0", "tee": "sample", "extra-params": {"supported-hash-algorithms": []}},
        {"version": "0.4.0", "tee": "sample", "extra-params": {"supported-hash-algorithms": ["x"]}},
    ],
)
def test_requests_for_a_challenge(guest: Guest, document: dict[str, Any]) -> None:
    assert guest.ask("POST", "/auth", document).status == 401


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"a":1,"a":2}', b"[" * 100_000])
def test_bodies_that_are_no_objects(guest: Guest, body: bytes) -> None:
    assert problem(guest.ask("POST", "/auth", body)) == (400, "MalformedRequest")
    guest.challenge()
    assert problem(guest.ask("POST", "/attest", body)) == (400, "MalformedRequest")


def test_the_hash_that_the_guest_can(guest: Guest) -> None:
    offered = {"supported-hash-algorithms": ["sm3", "sha512", "sha256"]}
    reply = guest.ask(
        "POST", "/auth", {"version": "0.4.0", "tee": "sample", "extra-params": offered}
    )
    selected = json.loads(reply.body)["extra-params"]["selected-hash-algorithm"]
    assert selected == "sha256"


@pytest.mark.parametrize(
    "jwk",
    [
        None,
        {},
        {"kty": "oct", "k": "AAAA", "alg": "ECDH-ES+A256KW"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "alg": "ECDH-ES+A256KW"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "RSA1_5"},
    ],
)
def test_keys_of_guests(guest: Guest, jwk: Any) -> None:
    reply = guest.attest(guest.challenge(), **{"tee-pubkey": jwk})
    assert reply.status == 401
    assert guest.ask("GET", "/resource/tenant/image-kek/7").status == 401


def test_evidence_of_hardware_is_not_believed(guest: Guest) -> None:
    nonce = guest.challenge(tee="tdx")
    assert problem(guest.attest(nonce)) == (401, "VerifierNotFound")


def test_sessions_are_bounded(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.kbs.sessions.MAX_SESSIONS", 3)
    first = guest.challenge()
    cookie = guest.cookie
    for _ in range(3):
        guest.challenge()
    assert len(guest.broker.sessions._open) <= 3
    guest.cookie = cookie
    assert problem(guest.attest(first)) == (401, "InvalidSession")


@pytest.mark.parametrize("release", ["0" * 5000, "7" * 5000, "-1", "7.0", "٧", ""])
def test_releases_that_are_none(guest: Guest, release: str) -> None:
    assert guest.attest(guest.challenge()).status == 200
    for query in (f"release={release}", f"signed={quote(json.dumps({'release': release}))}"):
        reply = guest.ask("GET", f"/resource/tenant/image-kek/7?{quote(query, safe='=&%')}")
        assert problem(reply) == (400, "InvalidRequestPath")


@pytest.mark.parametrize(
    "signed",
    ["", "7", "[7]", '{"release":7,"other":1}', '{"release":7,"release":8}', '{"release":true}',
     '{"release":7.0}', '{"release":-1}', '{"release":9007199254740992}',
     '{"release":' + "1" * 5000 + "}"],
)  # fmt: skip
def test_signed_statements_that_are_none(guest: Guest, signed: str) -> None:
    assert guest.attest(guest.challenge()).status == 200
    reply = guest.ask("GET", f"/resource/tenant/image-kek/7?signed={quote(signed)}")
    assert problem(reply) == (400, "InvalidRequestPath")


def test_a_release_comes_in_two_forms(guest: Guest, broker: RunningBroker) -> None:
    """A bare one is what clients sent at first."""
    broker.put(URI, KEY, Rule(minimum_release=7))
    assert guest.attest(guest.challenge()).status == 200
    for query, status in (("release=7", 200), ("release=6", 403), ("release=007", 200)):
        assert guest.ask("GET", f"/resource/tenant/image-kek/7?{query}").status == status
    for release in (6, 7):
        query = Claims("", release).query()
        status = 200 if release == 7 else 403
        assert guest.ask("GET", f"/resource/tenant/image-kek/7{query}").status == status
    both = "/resource/tenant/image-kek/7?release=7&signed=%7B%22release%22%3A7%7D"
    assert problem(guest.ask("GET", both)) == (400, "InvalidRequestPath")


def rsa_jwk(modulus: int, exponent: int = 65537) -> dict[str, str]:
    def number(value: int) -> str:
        data = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    return {"kty": "RSA", "alg": "RSA-OAEP-256", "n": number(modulus), "e": number(exponent)}


@pytest.mark.parametrize(
    "jwk",
    [
        rsa_jwk(1 << 2047),
        rsa_jwk((1 << 1023) + 1),
        rsa_jwk((1 << 16390) + 1),
        rsa_jwk((1 << 2047) + 1, 2),
        {**rsa_jwk((1 << 2047) + 1), "more": "x" * 9000},
        {**rsa_jwk((1 << 2047) + 1), "\ud800": "x"},
    ],
    ids=["even", "short", "long", "exponent", "big", "no-text"],
)
def test_rsa_keys_that_are_none(guest: Guest, jwk: dict[str, str]) -> None:
    """Some of them are taken by the cryptographic library, which fails when it uses them."""
    reply = guest.attest(guest.challenge(), bytes(48), **{"tee-pubkey": jwk})
    assert problem(reply) == (401, "AttestationFailed")
    assert "key of the guest" in reply.body.decode()


def test_a_key_that_fails_when_it_is_used(guest: Guest, broker: RunningBroker) -> None:
    """OpenSSL takes no large exponent with a large modulus, and says so late."""
    jwk = rsa_jwk((1 << 4095) + 1, (1 << 100) + 1)
    assert guest.attest(guest.challenge(), **{"tee-pubkey": jwk}).status == 200
    assert problem(guest.ask("GET", "/resource/tenant/image-kek/7")) == (500, "InternalError")
    *_, error, last = broker.audit()
    assert (error["event"], error["reason"]) == ("error", "FormatError")
    assert (last["result"], last["reason"]) == ("refused", "InternalError")


def test_whatever_fails_inside_is_answered_and_noted(
    guest: Guest, broker: RunningBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("lamina.kbs.sessions.Sessions.begin", fail)
    reply = guest.ask("POST", "/auth", {"version": "0.4.0", "tee": "sample"})
    assert problem(reply) == (500, "InternalError")
    assert b"secret" not in reply.body
    *_, error, last = broker.audit()
    assert (error["event"], error["reason"]) == ("error", "ZeroDivisionError")
    assert (last["event"], last["result"]) == ("auth", "refused")


def test_init_data_is_noted(guest: Guest, broker: RunningBroker) -> None:
    text = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    sent = {"format": "toml", "body": text}
    assert guest.attest(guest.challenge(), init_data=sent).status == 200
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert broker.audit()[-1]["init-data"] == f"sha256:{digest}"
    assert guest.attest(guest.challenge()).status == 200
    assert "init-data" not in broker.audit()[-1]
    for bad in (5, {}, {"format": "json", "body": ""}, {"format": "toml", "body": 5}):
        reply = guest.attest(guest.challenge(), init_data=bad)
        assert problem(reply) == (401, "AttestationFailed")


# Sockets.


def raw(broker: RunningBroker, data: bytes) -> bytes:
    context = ssl.create_default_context(cafile=broker.ca_file)
    port = int(broker.url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(data)
        answer = b""
        while part := sock.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"411"),
        (b"POST /kbs/v0/auth HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", b"411"),
        (b"POST /kbs/v0/auth HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"PUT /kbs/v0/auth HTTP/1.1\r\n\r\n", b"501"),
        (b"GET " + b"/" * 70000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_hostile_requests(broker: RunningBroker, data: bytes, status: bytes) -> None:
    answer = raw(broker, data)
    assert b"MalformedRequest" in answer
    if answer.startswith(b"HTTP/"):
        assert answer.split()[1] == status
    assert broker.client().fetch(RESOURCE).reveal() == KEY


def test_slow_clients_are_ended(broker: RunningBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    began, usual_s = time.monotonic(), server_module.DEADLINE_S
    monkeypatch.setattr(server_module, "DEADLINE_S", 0.3)
    port = int(broker.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        assert sock.recv(1) == b""
    assert time.monotonic() - began < usual_s


def test_connections_are_bounded(broker: RunningBroker) -> None:
    port = int(broker.url.rpartition(":")[2])
    held = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(66)]
    try:
        ended = 0
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            for sock in held:
                sock.setblocking(False)
                try:
                    ended += sock.recv(1) == b""
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    ended += 1
        assert ended
    finally:
        for sock in held:
            sock.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert broker.client().fetch(RESOURCE).reveal() == KEY
            break
        except FetchError:
            assert time.monotonic() < deadline


def test_addresses_of_brokers(broker: RunningBroker) -> None:
    ca = str(broker.ca_file)
    for url in ("http://192.0.2.1", "ftp://x", "x", "https://u@h", "https://h/path", ""):
        with pytest.raises(UsageError):
            parse_endpoint(url, ca)
    with pytest.raises(UsageError, match="by which certificate"):
        parse_endpoint("https://127.0.0.1:1", None)
    assert str(parse_endpoint("http://127.0.0.1:1", None)) == "http://127.0.0.1:1"


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        # Bound, so that nobody else listens there meanwhile.
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        client = KbsClient(parse_endpoint(f"http://127.0.0.1:{port}", None), SampleEvidence())
        with pytest.raises(FetchError, match="cannot be asked"):
            client.fetch(RESOURCE)


def test_a_source_without_evidence(broker: RunningBroker) -> None:
    class Nothing:
        tee = "tdx"

        def collect(self, report_data: bytes) -> Any:
            raise UnsupportedError("no TDX here")

    with pytest.raises(Error, match="no TDX here"):
        broker.client(Nothing()).fetch(RESOURCE)
