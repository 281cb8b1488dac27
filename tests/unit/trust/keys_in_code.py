"""Keys for the tests of this package, made once a run."""

from __future__ import annotations

import functools
from typing import Any

from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lamina.trust.crypto.keys import PrivateKey

CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


@functools.cache
def raw_key(kind: str, number: int = 0) -> Any:
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(CURVES[kind]())


def make_key(kind: str, number: int = 0) -> PrivateKey:
    return PrivateKey(raw_key(kind, number), f"{kind} {number}")


def pem(key: Any, form: str = "PKCS8", passphrase: bytes | None = None) -> bytes:
    encryption: Any = (
        s.NoEncryption() if passphrase is None else s.BestAvailableEncryption(passphrase)
    )
    forms = {"PKCS8": s.PrivateFormat.PKCS8, "traditional": s.PrivateFormat.TraditionalOpenSSL}
    data: bytes = key.private_bytes(s.Encoding.PEM, forms[form], encryption)
    return data


def der(key: Any) -> bytes:
    data: bytes = key.private_bytes(s.Encoding.DER, s.PrivateFormat.PKCS8, s.NoEncryption())
    return data
