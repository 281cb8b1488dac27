"""Asymmetric keys from files: PEM, DER and JWK; private ones also encrypted.

What: public keys as SubjectPublicKeyInfo or JWK, private keys as PKCS#8, PKCS#1, SEC1 or JWK,
encrypted PKCS#8 and the old "Proc-Type" PEM with a passphrase.  RSA from 2048 bits, EC on P-256,
P-384 and P-521, Ed25519 for signatures.  Sources: RFC 5958, RFC 8017, RFC 5915, RFC 7517 and 7518
§6, RFC 8037.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lamina.errors import FormatError, NotFoundError, TrustError, UnsupportedError, UsageError
from lamina.trust import strict_json
from lamina.trust.crypto.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

    RawPublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    RawPrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey

MAX_KEY_FILE_BYTES: Final = 64 << 10
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 16384
CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, where it came from, and the ``alg`` of its JWK ("" if it has none)."""

    key: RawPublicKey = field(repr=False)
    source: str
    algorithm: str = ""

    @property
    def kind(self) -> str:
        """``RSA``, ``P-256``, ``P-384``, ``P-521`` or ``Ed25519``."""
        return kind_of(self.key)

    def der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        from cryptography.hazmat.primitives import serialization as s

        return self.key.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""
        from cryptography.hazmat.primitives import serialization as s

        return self.key.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key and where it came from."""

    key: RawPrivateKey = field(repr=False)
    source: str

    @property
    def kind(self) -> str:
        """As :attr:`PublicKey.kind`."""
        return kind_of(self.key)

    def public(self) -> PublicKey:
        """Return its public half."""
        return PublicKey(self.key.public_key(), self.source)


def require_cryptography() -> None:
    """Raise UnsupportedError where the ``cryptography`` package is missing."""
    import importlib.util

    if importlib.util.find_spec("cryptography") is None:
        raise UnsupportedError(
            "encryption and signatures need the Python package 'cryptography'",
            hint="pip install 'lamina[ocicrypt]'",
        )


def kind_of(key: RawPublicKey | RawPrivateKey) -> str:
    """``RSA``, the curve's name, or ``Ed25519``."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return "RSA"
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return CURVES[key.curve.name]
    return "Ed25519"


def read_key_file(path: str | Path, *, private: bool) -> bytes:
    """Return the bytes of a key file, at most 64 KiB.

    Raises NotFoundError, UsageError; TrustError for a private key that everybody may read.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no key file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the key file {path}: {error.strerror}") from None
    if private and stat.S_ISREG(mode) and mode & stat.S_IROTH and _looks_private(data):
        raise TrustError(
            f"the private key {path} can be read by every user of this machine",
            hint=f"chmod 600 {path}",
        )
    if len(data) > MAX_KEY_FILE_BYTES:
        raise UsageError(f"{path} has more than {MAX_KEY_FILE_BYTES} bytes: it is no key")
    return data


def _looks_private(data: bytes) -> bool:
    """Public keys and certificates may be readable; all else is taken for a secret."""
    labels = re.findall(rb"-----BEGIN ([A-Z0-9 ]+)-----", data)
    return not labels or any(label.endswith(b"PRIVATE KEY") for label in labels)


def load_public_key(data: bytes, source: str) -> PublicKey:
    """Return a public key from PEM, DER or JWK.  Raises FormatError, UnsupportedError."""
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        load_der_public_key,
        load_pem_public_key,
    )

    if data.lstrip()[:1] == b"{":
        from lamina.trust.crypto.jwk import public_from_jwk

        document = strict_json.parse_object(data, f"key {source}", MAX_KEY_FILE_BYTES)
        key, algorithm = public_from_jwk(document, f"key {source}")
        return PublicKey(check_key(key, source), source, algorithm)
    try:
        loaded = (load_pem_public_key if b"-----BEGIN" in data else load_der_public_key)(data)
    except (ValueError, UnsupportedAlgorithm):
        raise FormatError(
            f"{source} is no public key", hint="it must be PEM, DER or JWK; a private key is not it"
        ) from None
    return PublicKey(check_key(loaded, source), source)


def load_private_key(data: bytes, source: str, passphrase: Secret | None = None) -> PrivateKey:
    """Return a private key from PEM, DER or JWK.

    Raises FormatError, UnsupportedError; TrustError for a missing or wrong passphrase.
    """
    require_cryptography()
    if data.lstrip()[:1] == b"{":
        from lamina.trust.crypto.jwk import private_from_jwk

        document = strict_json.parse_object(data, f"key {source}", MAX_KEY_FILE_BYTES)
        return PrivateKey(check_key(private_from_jwk(document, f"key {source}"), source), source)
    return PrivateKey(check_key(_parse_private(data, source, passphrase), source), source)


def _parse_private(data: bytes, source: str, passphrase: Secret | None) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        load_der_private_key,
        load_pem_private_key,
    )

    is_pem = b"-----BEGIN" in data
    encrypted = is_pem and b"ENCRYPTED" in data
    if encrypted and passphrase is None:
        raise TrustError(
            f"the private key {source} is encrypted and no passphrase was given",
            hint=f"write {source}:file=PATH or {source}:fd=NUMBER",
        )
    load = load_pem_private_key if is_pem else load_der_private_key
    try:
        if passphrase is None:
            return load(data, None)
        try:
            return load(data, passphrase.reveal())
        except TypeError:
            # A passphrase for a key that needs none does no harm.
            return load(data, None)
    except TypeError:
        raise TrustError(f"the private key {source} is encrypted, no passphrase given") from None
    except (ValueError, UnsupportedAlgorithm):
        # The text of the cause may have parts of the key in it.
        if passphrase is not None:
            raise TrustError(
                f"the private key {source} cannot be opened: wrong passphrase, or no key"
            ) from None
        raise FormatError(f"{source} is no private key in PEM, DER or JWK") from None


def check_key(key: Any, source: str) -> Any:
    """Return the same key.  Raises TrustError for RSA keys that are too short or too long,
    UnsupportedError for kinds that are not used.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise TrustError(f"the RSA key {source} has {key.key_size} bits, not 2048 to 16384")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        if key.curve.name in CURVES:
            return key
    elif isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return key
    raise UnsupportedError(
        f"the key {source} is of a kind that is not used here",
        hint="use RSA, EC on P-256, P-384 or P-521, or Ed25519 for signatures",
    )
