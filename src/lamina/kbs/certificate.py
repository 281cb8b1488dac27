"""A certificate authority of the broker's own, and the certificate that it serves with.

The authority's key is forgotten at once: a new certificate means a new authority to hand out.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lamina.errors import UsageError

VALID_DAYS: Final = 3650


class Certificates(NamedTuple):
    """PEM texts: what clients trust, what the broker shows, and its private key."""

    authority: bytes
    certificate: bytes
    key: bytes


def make_certificates(names: Sequence[str], valid_days: int = VALID_DAYS) -> Certificates:
    """Certificates for some DNS names and addresses (ECDSA on P-256).  Raises UsageError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = _name("Lamina key broker authority")
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    end = begin + dt.timedelta(days=valid_days)

    def build(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(root_name)
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(begin).not_valid_after(end)
        subject_key = x509.SubjectKeyIdentifier.from_public_key(public)
        return builder.add_extension(subject_key, critical=False)

    root = (
        build(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    served = (
        build(_name("Lamina key broker"), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_alternatives(names)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(authority_key, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    return Certificates(root.public_bytes(s.Encoding.PEM), served.public_bytes(s.Encoding.PEM), pem)


def _usage(*, signs_certificates: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternatives(names: Sequence[str]) -> list[Any]:
    from cryptography import x509

    found: list[Any] = []
    for name in names:
        with contextlib.suppress(ValueError):
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
            continue
        try:
            found.append(x509.DNSName(name))
        except ValueError:
            raise UsageError(f"{name[:200]!r} is no name for a certificate") from None
    return found
