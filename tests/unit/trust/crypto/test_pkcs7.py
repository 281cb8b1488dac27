from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tools
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import Error, FormatError, TrustError, UnsupportedError
from lamina.trust.crypto import der, pkcs7
from lamina.trust.crypto.keys import PrivateKey

PAYLOAD = b'{"symkey":"..."}'


def make_certificate(key: PrivateKey, name: str = "p7") -> pkcs7.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=365))
    )
    algorithm = None if key.kind == "Ed25519" else hashes.SHA256()
    certificate = builder.sign(key.key, algorithm)
    return pkcs7.load_certificate(certificate.public_bytes(s.Encoding.PEM), name)


RSA, OTHER = make_key("RSA"), make_key("RSA", 1)
ONE, TWO = make_certificate(RSA, "one"), make_certificate(OTHER, "two")


@pytest.mark.parametrize("primitive", [False, True], ids=["as 1.9.3", "as 1.22"])
def test_both_encodings(primitive: bool) -> None:
    message = pkcs7.encrypt(PAYLOAD, [ONE, TWO], primitive=primitive)
    for certificate, key in ((ONE, RSA), (TWO, OTHER)):
        assert pkcs7.decrypt(message, [certificate], [key]) == PAYLOAD
    assert pkcs7.decrypt(message, [TWO, ONE], [OTHER, RSA]) == PAYLOAD
    for certificates, keys in (([ONE], [OTHER]), ([TWO], [RSA]), ([], [RSA]), ([ONE], [])):
        with pytest.raises(TrustError, match="certificate and key"):
            pkcs7.decrypt(message, certificates, keys)


def test_openssl_parses_it(tmp_path: Path) -> None:
    tools.require_tool("openssl")
    words = ["openssl", "asn1parse", "-inform", "DER"]
    message = pkcs7.encrypt(PAYLOAD, [ONE])
    done = subprocess.run(words, input=message, capture_output=True, check=True)
    for name in (b"pkcs7-envelopedData", b"rsaEncryption", b"pkcs7-data", b"aes-128-gcm"):
        assert name in done.stdout


def test_rsa_only() -> None:
    with pytest.raises(UnsupportedError, match="RSA"):
        make_certificate(make_key("P-256"))
    for data in (b"", b"-----BEGIN CERTIFICATE-----\n", RSA.public().pem()):
        with pytest.raises(FormatError):
            pkcs7.load_certificate(data, "c")


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_never_gives_other_bytes(position: int, change: int) -> None:
    message = bytearray(pkcs7.encrypt(PAYLOAD, [ONE]))
    message[position % len(message)] ^= change
    with contextlib.suppress(Error):
        # Bytes of parts that nobody needs may change.
        assert pkcs7.decrypt(bytes(message), [ONE], [RSA]) == PAYLOAD


@given(st.binary(max_size=300))
def test_hostile_bytes(data: bytes) -> None:
    for wrapped in (data, der.encode(der.SEQUENCE, data)):
        with pytest.raises(Error):
            pkcs7.decrypt(wrapped, [ONE], [RSA])


@pytest.mark.parametrize(
    "data", ["30", "3080", "308101", "30820001ff", "3003", "1f0100", "30850000000000", "30810130"]
)
def test_lengths_that_are_not_der(data: str) -> None:
    with pytest.raises(FormatError):
        der.read(bytes.fromhex(data), "x")


def test_long_lengths() -> None:
    for size in (0, 127, 128, 255, 256, 65536):
        assert der.read(der.encode(der.OCTET_STRING, bytes(size)), "x").content == bytes(size)
