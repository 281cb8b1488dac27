"""Bundles of a plain key: what is taken and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import Error, FormatError, TrustError, UnsupportedError
from lamina.trust.signatures import signature, sigstore_bundle

KEY, FOREIGN = make_key("P-256"), make_key("P-256", 1)
DIGEST = "sha256:" + "ab" * 32


def check(data: bytes, digest: str = DIGEST) -> sigstore_bundle.Subject:
    return sigstore_bundle.check_bundle(data, [FOREIGN.public(), KEY.public()], digest)


@pytest.mark.parametrize("kind", ["RSA", "P-256", "P-384", "Ed25519"])
def test_round_trip(kind: str) -> None:
    key = make_key(kind)
    data = sigstore_bundle.make_bundle(key, DIGEST, {"release": 3})
    assert sigstore_bundle.check_bundle(data, [key.public()], DIGEST) == (DIGEST, {"release": 3})
    with pytest.raises(TrustError, match="not by a key"):
        sigstore_bundle.check_bundle(data, [make_key(kind, 8).public()], DIGEST)


def test_the_form_that_cosign_makes() -> None:
    document = json.loads(sigstore_bundle.make_bundle(KEY, DIGEST))
    hint = base64.b64encode(hashlib.sha256(KEY.public().der()).digest()).decode()
    assert document["verificationMaterial"] == {"publicKey": {"hint": hint}}
    assert json.loads(base64.b64decode(document["dsseEnvelope"]["payload"])) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": "ab" * 32}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    assert sigstore_bundle.pre_authentication("ab", b"xyz") == b"DSSEv1 2 ab 3 xyz"


def with_statement(**changes: Any) -> bytes:
    """A bundle whose statement is another one, signed by the right key."""
    document = json.loads(sigstore_bundle.make_bundle(KEY, DIGEST))
    envelope = document["dsseEnvelope"]
    statement = {**json.loads(base64.b64decode(envelope["payload"])), **changes}
    payload = json.dumps(statement).encode()
    made = signature.sign(KEY, sigstore_bundle.pre_authentication(envelope["payloadType"], payload))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"] = [{"sig": base64.b64encode(made).decode()}]
    return json.dumps(document).encode()


def test_an_empty_hint_is_fine_and_so_are_more_subjects() -> None:
    document = json.loads(sigstore_bundle.make_bundle(KEY, DIGEST))
    document["verificationMaterial"]["publicKey"] = {}
    assert check(json.dumps(document).encode())
    subjects = [{"digest": {"sha256": "00"}}, {"digest": {"sha256": "ab" * 32}}]
    assert check(with_statement(subject=subjects)).digest == DIGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": [{"digest": {"sha256": "cd" * 32}}]},
        {"subject": [{"digest": {"sha512": "ab" * 32}}]},
        {"subject": []},
        {"subject": [5, None, {}]},
        {"subject": None},
        {"subject": [{"digest": {"sha256": "ab" * 32}, "annotations": [1]}]},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"_type": "x"},
    ],
)
def test_statements_about_something_else(changes: dict[str, Any]) -> None:
    with pytest.raises((TrustError, FormatError)):
        check(with_statement(**changes))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mediaType",), "application/json"),
        (("verificationMaterial",), {"certificate": {"rawBytes": ""}}),
        (("dsseEnvelope", "payloadType"), "text/plain"),
        (("dsseEnvelope", "signatures"), []),
        (("dsseEnvelope", "signatures", 0, "keyid"), "somebody"),
        (("dsseEnvelope", "signatures", 0, "sig"), "AAAA"),
        (("dsseEnvelope", "payload"), "e30="),
        (("dsseEnvelope", "more"), 1),
        (("dsseEnvelope",), None),
    ],
)
def test_envelopes(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(sigstore_bundle.make_bundle(KEY, DIGEST))
    target: Any = document
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    with pytest.raises((TrustError, FormatError, UnsupportedError)):
        check(json.dumps(document).encode())


def test_two_signatures() -> None:
    document = json.loads(sigstore_bundle.make_bundle(KEY, DIGEST))
    document["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(FormatError, match="exactly one"):
        check(json.dumps(document).encode())


@given(st.binary(max_size=100))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(Error):
        check(data)
