from __future__ import annotations

import json
import subprocess
import traceback
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwcrypto import jwk
from tests.support import tools
from tests.unit.trust.keys_in_code import der, make_key, pem, raw_key

from lamina.errors import Error, FormatError, TrustError, UnsupportedError, UsageError
from lamina.trust.crypto.keys import load_private_key, load_public_key, read_key_file
from lamina.trust.crypto.secret import Secret

WRONG = bytes.fromhex("636f66666565")
KINDS = ["RSA", "P-256", "P-384", "P-521", "Ed25519"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_key(kind: str) -> None:
    key = make_key(kind)
    public = key.public()
    as_jwk = jwk.JWK.from_pem(pem(key.key))
    for data in (public.pem(), public.der(), as_jwk.export_public().encode()):
        loaded = load_public_key(data, "k")
        assert loaded.kind == kind
        assert loaded.der() == public.der()
    for data in (pem(key.key), der(key.key), as_jwk.export_private().encode()):
        private = load_private_key(data, "k")
        assert private.public().der() == public.der()
        assert load_private_key(data, "k", Secret(b"not needed")).kind == kind
    if kind != "Ed25519":
        assert load_private_key(pem(key.key, "traditional"), "k").kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_encrypted_keys(kind: str) -> None:
    key = make_key(kind)
    for form in ("PKCS8",) if kind == "Ed25519" else ("PKCS8", "traditional"):
        data = pem(key.key, form, b"tea")
        assert load_private_key(data, "k", Secret(b"tea")).public().der() == key.public().der()
        with pytest.raises(TrustError, match="encrypted"):
            load_private_key(data, "k")
        with pytest.raises(TrustError) as caught:
            load_private_key(data, "k", Secret(WRONG))
        assert WRONG.decode() not in "".join(traceback.format_exception(caught.value))


def test_keys_do_not_show() -> None:
    for kind in KINDS:
        assert repr(make_key(kind)) == f"PrivateKey(source='{kind} 0')"


def test_the_old_pem_encryption_of_openssl(tmp_path: Path) -> None:
    tools.require_tool("openssl")
    plain, old = tmp_path / "plain.pem", tmp_path / "old.pem"
    plain.write_bytes(pem(raw_key("RSA")))
    words = ["openssl", "rsa", "-in", str(plain), "-aes256", "-passout", "pass:tea", "-traditional"]
    subprocess.run([*words, "-out", str(old)], check=True, capture_output=True)
    assert b"Proc-Type" in old.read_bytes()
    assert load_private_key(old.read_bytes(), "k", Secret(b"tea")).kind == "RSA"


def _variants() -> list[dict[str, Any]]:
    base = json.loads(jwk.JWK.from_pem(pem(raw_key("P-256"))).export_private())
    changes: list[dict[str, Any]] = [
        {"x": "AAAA"}, {"x": base["y"]}, {"crv": "P-999"}, {"crv": ["P-256"]}, {"kty": "oct"},
        {"kty": None}, {"x": 7}, {"x": base["x"] + "="}, {"kty": "RSA"}, {"y": "+" + base["y"][1:]},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"}, {"alg": 1},
    ]  # fmt: skip
    return [{**base, **change} for change in changes]


@pytest.mark.parametrize("number", range(12))
def test_broken_jwks(number: int) -> None:
    data = json.dumps(_variants()[number]).encode()
    with pytest.raises(Error):
        load_public_key(data, "k")


@pytest.mark.parametrize(
    "data", [b"", b"-----BEGIN PUBLIC KEY-----\n", b"\x30\x82\xff", b"{", b"[1]"]
)
def test_no_keys(data: bytes) -> None:
    with pytest.raises(FormatError):
        load_public_key(data, "k")
    with pytest.raises(FormatError):
        load_private_key(data, "k")


def test_weak_and_strange_keys() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    with pytest.raises(TrustError, match="1024 bits"):
        load_private_key(pem(weak), "k")
    with pytest.raises(UnsupportedError):
        load_private_key(pem(ec.generate_private_key(ec.SECP256K1())), "k")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(raw_key("P-256")))
    file.chmod(0o644)
    with pytest.raises(TrustError, match="every user"):
        read_key_file(file, private=True)
    file.chmod(0o600)
    assert read_key_file(file, private=True).startswith(b"-----BEGIN")
    both = tmp_path / "both.pem"
    both.write_bytes(pem(raw_key("P-256")) + make_key("P-256").public().pem())
    both.chmod(0o644)
    with pytest.raises(TrustError, match="every user"):
        read_key_file(both, private=True)
    public = tmp_path / "key.pub"
    public.write_bytes(make_key("P-256").public().pem())
    public.chmod(0o644)
    assert read_key_file(public, private=True)
    with pytest.raises(Error, match="no key file"):
        read_key_file(tmp_path / "absent", private=False)
    with pytest.raises(UsageError):
        read_key_file(tmp_path, private=False)
    public.write_bytes(b"x" * 70000)
    with pytest.raises(UsageError, match="65536"):
        read_key_file(public, private=False)
