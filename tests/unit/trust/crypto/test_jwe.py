from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jwcrypto import jwe as oracle
from jwcrypto import jwk
from tests.unit.trust.keys_in_code import make_key, pem

from lamina.errors import Error, FormatError, TrustError, UnsupportedError
from lamina.trust.crypto import jwe
from lamina.trust.crypto.keys import PrivateKey, PublicKey
from lamina.trust.strict_json import decode_base64url, encode_base64url

PAYLOAD = b'{"symkey":"..."}'
RSA, EC = make_key("RSA"), make_key("P-256")


def as_jwk(key: PrivateKey) -> Any:
    return jwk.JWK.from_pem(pem(key.key))


def by_jwcrypto(keys: list[PrivateKey], algorithms: list[str], protected: bool = True) -> str:
    """A JWE made by jwcrypto in JSON form."""
    if len(keys) == 1:
        header = {"alg": algorithms[0], "enc": "A256GCM"}
        token = oracle.JWE(PAYLOAD, json.dumps(header), algs=[*algorithms, "A256GCM"])
        token.add_recipient(as_jwk(keys[0]))
    else:
        token = oracle.JWE(PAYLOAD, json.dumps({"enc": "A256GCM"}))
        for key, algorithm in zip(keys, algorithms, strict=True):
            token.add_recipient(as_jwk(key), json.dumps({"alg": algorithm}))
    text: str = token.serialize()
    return text


@pytest.mark.parametrize("kind", ["RSA", "P-256", "P-384", "P-521"])
def test_one_recipient(kind: str) -> None:
    key = make_key(kind)
    text = jwe.encrypt(PAYLOAD, [key.public()])
    assert jwe.decrypt(text, [make_key("RSA", 1), make_key("P-256", 1), key]) == PAYLOAD
    document = json.loads(text)
    assert document.keys() == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
    header = decode_base64url(document["protected"], "h").decode()
    wanted = "RSA-OAEP" if kind == "RSA" else "ECDH-ES+A256KW"
    assert header.startswith(f'{{"alg":"{wanted}","enc":"A256GCM"')
    if kind != "RSA":
        assert f'"epk":{{"crv":"{kind}","kty":"EC","x":"' in header
    token = oracle.JWE()
    token.deserialize(text.decode(), as_jwk(key))
    assert token.payload == PAYLOAD


def test_several_recipients() -> None:
    text = jwe.encrypt(PAYLOAD, [RSA.public(), EC.public(), make_key("P-521").public()])
    for key in (RSA, EC, make_key("P-521")):
        assert jwe.decrypt(text, [key]) == PAYLOAD
        token = oracle.JWE()
        token.deserialize(text.decode(), as_jwk(key))
        assert token.payload == PAYLOAD
    with pytest.raises(TrustError):
        jwe.decrypt(text, [make_key("RSA", 1), make_key("P-256", 1), make_key("Ed25519")])


@pytest.mark.parametrize("algorithm", ["RSA-OAEP", "RSA-OAEP-256"])
def test_flattened_rsa_by_jwcrypto(algorithm: str) -> None:
    assert jwe.decrypt(by_jwcrypto([RSA], [algorithm]).encode(), [RSA]) == PAYLOAD


@pytest.mark.parametrize("bits", [128, 192, 256])
def test_flattened_ec_by_jwcrypto_with_epk_beside(bits: int) -> None:
    text = by_jwcrypto([EC], [f"ECDH-ES+A{bits}KW"])
    assert "epk" in json.loads(text)["header"]
    assert jwe.decrypt(text.encode(), [EC]) == PAYLOAD


@pytest.mark.parametrize("spelling", ["RSA-OAEP-256", "ECDH-ES+A128KW", "ECDH-ES+A192KW"])
def test_the_alg_of_a_jwk_decides(spelling: str) -> None:
    key = RSA if spelling.startswith("RSA") else EC
    public = PublicKey(key.key.public_key(), "jwk", spelling)
    text = jwe.encrypt(PAYLOAD, [public])
    assert spelling in decode_base64url(json.loads(text)["protected"], "h").decode()
    assert jwe.decrypt(text, [key]) == PAYLOAD


def test_general_form_with_one_and_two_recipients_and_go_joses_duplicate_key() -> None:
    text = by_jwcrypto([RSA, EC], ["RSA-OAEP", "ECDH-ES+A256KW"])
    document = json.loads(text)
    assert len(document["recipients"]) == 2
    document["encrypted_key"] = document["recipients"][0]["encrypted_key"]
    for data in (text, json.dumps(document)):
        assert jwe.decrypt(data.encode(), [RSA]) == PAYLOAD
        assert jwe.decrypt(data.encode(), [EC]) == PAYLOAD
    document["recipients"] = document["recipients"][1:]
    assert jwe.decrypt(json.dumps(document).encode(), [EC]) == PAYLOAD


def test_compact_form() -> None:
    token = oracle.JWE(PAYLOAD, json.dumps({"alg": "RSA-OAEP", "enc": "A256GCM"}))
    token.add_recipient(as_jwk(RSA))
    assert jwe.decrypt(token.serialize(compact=True).encode(), [RSA]) == PAYLOAD


def test_algorithm_downgrade_to_rsa1_5_is_refused() -> None:
    token = oracle.JWE(
        PAYLOAD, json.dumps({"alg": "RSA1_5", "enc": "A256GCM"}), algs=["RSA1_5", "A256GCM"]
    )
    token.add_recipient(as_jwk(RSA))
    with pytest.raises(UnsupportedError, match="RSA1_5"):
        jwe.decrypt(token.serialize().encode(), [RSA])


def changed(document: dict[str, Any], **header: Any) -> dict[str, Any]:
    head = json.loads(decode_base64url(document["protected"], "h"))
    head.update(header)
    return {**document, "protected": encode_base64url(json.dumps(head).encode())}


@pytest.mark.parametrize(
    "header",
    [
        {"enc": "A128GCM"}, {"enc": None}, {"alg": "dir"}, {"alg": "A256KW"}, {"alg": ["RSA-OAEP"]},
        {"zip": "DEF"}, {"crit": ["x"]}, {"alg": "none"}, {"enc": "A256CBC-HS512"},
    ],
)  # fmt: skip
def test_other_algorithms_are_refused(header: dict[str, Any]) -> None:
    document = changed(json.loads(jwe.encrypt(PAYLOAD, [RSA.public()])), **header)
    with pytest.raises((UnsupportedError, FormatError)):
        jwe.decrypt(json.dumps(document).encode(), [RSA])


def test_everything_is_authenticated() -> None:
    document = json.loads(jwe.encrypt(PAYLOAD, [EC.public()]))
    for name in ("encrypted_key", "iv", "ciphertext", "tag"):
        data = bytearray(decode_base64url(document[name], name))
        data[0] ^= 1
        with pytest.raises(TrustError):
            jwe.decrypt(json.dumps({**document, name: encode_base64url(data)}).encode(), [EC])
    with pytest.raises(TrustError):
        jwe.decrypt(json.dumps(changed(document, kid="x")).encode(), [EC])


@pytest.mark.parametrize(
    "change",
    [
        {"aad": "AA"}, {"more": 1}, {"recipients": []}, {"recipients": 5}, {"recipients": [5]},
        {"protected": None}, {"protected": "e30"}, {"protected": "W10"}, {"iv": "AA"},
        {"tag": "AA"},
        {"header": {"alg": "RSA-OAEP"}}, {"header": 5}, {"unprotected": {"enc": "A256GCM"}},
        {"encrypted_key": None}, {"ciphertext": "!"},
    ],
)  # fmt: skip
def test_broken_messages(change: dict[str, Any]) -> None:
    document = json.loads(jwe.encrypt(PAYLOAD, [RSA.public()]))
    with pytest.raises(Error):
        jwe.decrypt(json.dumps({**document, **change}).encode(), [RSA])


@pytest.mark.parametrize(
    "epk", [None, 5, {}, {"kty": "EC"}, {"kty": "RSA", "n": "AQAB", "e": "AQAB"}]
)
def test_broken_ephemeral_keys(epk: Any) -> None:
    document = changed(json.loads(jwe.encrypt(PAYLOAD, [EC.public()])), epk=epk)
    with pytest.raises(Error):
        jwe.decrypt(json.dumps(document).encode(), [EC])


def test_keys_that_cannot_encrypt() -> None:
    with pytest.raises(UnsupportedError):
        jwe.encrypt(PAYLOAD, [make_key("Ed25519").public()])
    for algorithm in ("RSA1_5", "ECDH-ES+A256KW"):
        with pytest.raises(UnsupportedError):
            jwe.encrypt(PAYLOAD, [PublicKey(RSA.key.public_key(), "k", algorithm)])


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(Error):
        jwe.decrypt(data, [RSA])
    with pytest.raises(Error):
        jwe.decrypt(b".".join([encode_base64url(data).encode()] * 5), [RSA])
