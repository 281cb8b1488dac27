"""PKCS#7 EnvelopedData as ocicrypt writes it, with its deviations from CMS.

What: EnvelopedData version 0 (RFC 5652 §6.1 has another use for AES-GCM), RSA PKCS#1 v1.5 key
transport to certificates, AES-128-GCM with the tag after the ciphertext and no additional data.
The parameters of the content algorithm carry the identifier 0x10, a SEQUENCE that is marked
primitive, whose content is the real SEQUENCE of nonce, tagged ``[4]``, and tag length.
encryptedContent is ``[0]`` constructed around one OCTET STRING (ocicrypt before 1.2, skopeo 1.9)
or ``[0]`` primitive (later); both are read, and the older form is written, which every reader
takes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from lamina.errors import FormatError, TrustError, UnsupportedError
from lamina.trust.crypto import der
from lamina.trust.crypto.keys import PrivateKey, require_cryptography

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.x509 import Certificate as X509Certificate

_DATA: Final = bytes.fromhex("2a864886f70d010701")
_ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
_RSA_ENCRYPTION: Final = bytes.fromhex("2a864886f70d010101")
_AES_128_GCM: Final = bytes.fromhex("608648016503040106")
_AES_256_GCM: Final = bytes.fromhex("60864801650304012e")
_KEY_BYTES: Final = {_AES_128_GCM: 16, _AES_256_GCM: 32}
_PRIMITIVE_SEQUENCE: Final = 0x10
_NONCE_TAG: Final = 0x84
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
MAX_PKCS7_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Certificate:
    """An RSA certificate: a recipient, or which recipient a key is."""

    certificate: X509Certificate = field(repr=False)
    source: str

    @property
    def issuer_and_serial(self) -> bytes:
        """IssuerAndSerialNumber in DER, by which a message names its recipient."""
        serial = self.certificate.serial_number
        number = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
        issuer = self.certificate.issuer.public_bytes()
        return der.encode(der.SEQUENCE, issuer, der.encode(der.INTEGER, number))

    def belongs_to(self, key: PrivateKey) -> bool:
        """Tell whether this certificate is for the key."""
        from cryptography.hazmat.primitives import serialization as s

        mine = self.certificate.public_key().public_bytes(
            s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo
        )
        return mine == key.public().der()


class _Envelope(NamedTuple):
    encrypted_keys: dict[bytes, bytes]
    algorithm: bytes
    nonce: bytes
    sealed: bytes


def load_certificate(data: bytes, source: str) -> Certificate:
    """Return a certificate from PEM or DER.

    Raises FormatError; UnsupportedError unless its key is RSA.
    """
    require_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        is_pem = b"-----BEGIN" in data
        load = x509.load_pem_x509_certificate if is_pem else x509.load_der_x509_certificate
        certificate = load(data)
        key = certificate.public_key()
    except Exception:  # noqa: BLE001 - the parser raises what has no common ancestor
        raise FormatError(f"{source} is no X.509 certificate") from None
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        raise UnsupportedError(
            f"the certificate {source} has no RSA key of at least 2048 bits",
            hint="PKCS#7 takes RSA only; use jwe: for other keys",
        )
    return Certificate(certificate, source)


def encrypt(payload: bytes, recipients: Sequence[Certificate], *, primitive: bool = False) -> bytes:
    """Encrypt for every certificate; DER.  ``primitive`` writes the form of ocicrypt 1.2 and
    later.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key, nonce = os.urandom(16), os.urandom(_NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, payload, None)
    infos = b"".join(_recipient_info(recipient, key) for recipient in recipients)
    parameters = der.encode(
        der.SEQUENCE,
        der.encode(_NONCE_TAG, nonce),
        der.encode(der.INTEGER, bytes((_TAG_BYTES,))),
    )
    algorithm = der.encode(
        der.SEQUENCE,
        der.encode(der.OBJECT_IDENTIFIER, _AES_128_GCM),
        der.encode(_PRIMITIVE_SEQUENCE, parameters),
    )
    content = (
        der.encode(der.CONTEXT_0_PRIMITIVE, sealed)
        if primitive
        else der.encode(der.CONTEXT_0, der.encode(der.OCTET_STRING, sealed))
    )
    enveloped = der.encode(
        der.SEQUENCE,
        der.encode(der.INTEGER, b"\0"),
        der.encode(der.SET, infos),
        der.encode(der.SEQUENCE, der.encode(der.OBJECT_IDENTIFIER, _DATA), algorithm, content),
    )
    return der.encode(
        der.SEQUENCE,
        der.encode(der.OBJECT_IDENTIFIER, _ENVELOPED_DATA),
        der.encode(der.CONTEXT_0, enveloped),
    )


def _recipient_info(recipient: Certificate, key: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import padding

    public = cast("RSAPublicKey", recipient.certificate.public_key())
    return der.encode(
        der.SEQUENCE,
        der.encode(der.INTEGER, b"\0"),
        recipient.issuer_and_serial,
        der.encode(der.SEQUENCE, der.encode(der.OBJECT_IDENTIFIER, _RSA_ENCRYPTION)),
        der.encode(der.OCTET_STRING, public.encrypt(key, padding.PKCS1v15())),
    )


def decrypt(
    message: bytes, certificates: Sequence[Certificate], keys: Sequence[PrivateKey]
) -> bytes:
    """Return the payload, opened by a certificate together with its key.

    Raises FormatError for what is no such message, UnsupportedError for other algorithms,
    TrustError if nothing given opens it.
    """
    require_cryptography()
    from cryptography.exceptions import InvalidTag

    envelope = _parse(message)
    for certificate, key in product(certificates, keys):
        encrypted_key = envelope.encrypted_keys.get(certificate.issuer_and_serial)
        if encrypted_key is not None and key.kind == "RSA" and certificate.belongs_to(key):
            with suppress(ValueError, InvalidTag):
                return _opened(envelope, encrypted_key, key)
    raise TrustError(
        "no certificate and key given opens the PKCS#7 message",
        hint="give both: --decryption-key key.pem --decryption-key cert.pem",
    )


def _opened(envelope: _Envelope, encrypted_key: bytes, key: PrivateKey) -> bytes:
    """Return the payload.  Raises ValueError or InvalidTag if this is not the key."""
    from cryptography.hazmat.primitives.asymmetric import padding
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    private = cast("RSAPrivateKey", key.key)
    content_key = private.decrypt(encrypted_key, padding.PKCS1v15())
    if len(content_key) != _KEY_BYTES[envelope.algorithm]:
        raise ValueError("the content key is of another length")
    return AESGCM(content_key).decrypt(envelope.nonce, envelope.sealed, None)


def _parse(message: bytes) -> _Envelope:
    what = "PKCS#7 message"
    if len(message) > MAX_PKCS7_BYTES:
        raise FormatError(f"the {what} has {len(message)} bytes, more than {MAX_PKCS7_BYTES}")
    outer = der.read(message, what)
    kind, wrapped = der.sequence(outer, (der.OBJECT_IDENTIFIER, der.CONTEXT_0), what)
    if kind.content != _ENVELOPED_DATA:
        raise UnsupportedError(f"the {what} is no EnvelopedData")
    enveloped = der.read(wrapped.content, what)
    version, infos, content = der.sequence(enveloped, (der.INTEGER, der.SET, der.SEQUENCE), what)
    if version.content != b"\0":
        raise UnsupportedError(f"the {what} has another version than 0")
    keys = dict(_recipient(info, what) for info in der.children(infos, what))
    return _Envelope(keys, *_content(content, what))


def _recipient(info: der.Element, what: str) -> tuple[bytes, bytes]:
    parts = (der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.OCTET_STRING)
    version, name, algorithm, key = der.sequence(info, parts, what)
    identifiers = list(der.children(algorithm, what))
    if version.content != b"\0" or not identifiers or identifiers[0].content != _RSA_ENCRYPTION:
        raise UnsupportedError(f"a recipient of the {what} does not use RSA PKCS#1")
    return name.encoded, key.content


def _content(content: der.Element, what: str) -> tuple[bytes, bytes, bytes]:
    parts = list(der.children(content, what))
    if len(parts) != 3:
        raise FormatError(f"the {what} does not have the parts it must have")
    kind, algorithm, sealed = parts
    if kind.content != _DATA:
        raise UnsupportedError(f"the {what} wraps something else than data")
    identifier, parameters = der.sequence(
        algorithm, (der.OBJECT_IDENTIFIER, _PRIMITIVE_SEQUENCE), what
    )
    if identifier.content not in _KEY_BYTES:
        raise UnsupportedError(f"the {what} is not encrypted with AES-GCM")
    inner = list(
        der.children(der.expect(der.read(parameters.content, what), der.SEQUENCE, what), what)
    )
    if len(inner) != 2 or inner[0].tag not in (der.OCTET_STRING, _NONCE_TAG):
        raise FormatError(f"the {what} has no nonce")
    nonce, tag_bytes = inner
    if len(nonce.content) != _NONCE_BYTES or tag_bytes.content != bytes((_TAG_BYTES,)):
        raise UnsupportedError(f"the {what} has a nonce or tag of an unusual length")
    return identifier.content, nonce.content, _sealed(sealed, what)


def _sealed(content: der.Element, what: str) -> bytes:
    if content.tag == der.CONTEXT_0_PRIMITIVE:
        data = content.content
    else:
        der.expect(content, der.CONTEXT_0, what)
        data = der.expect(der.read(content.content, what), der.OCTET_STRING, what).content
    if len(data) < _TAG_BYTES:
        raise FormatError(f"the {what} has no authentication tag")
    return data
