"""JSON Web Encryption as ocicrypt and the key broker use it (RFC 7516, RFC 7518).

Content is always encrypted with A256GCM; keys are wrapped with RSA-OAEP, RSA-OAEP-256 or
ECDH-ES+A128KW, +A192KW, +A256KW.  Everything else, RSA1_5 above all, is refused.  Reads the
compact, flattened and general forms, with epk in any header, and the top-level ``encrypted_key``
that go-jose writes beside ``recipients``; writes flattened for one recipient and general for
several, as go-jose does.  The protected header is compact and in the order alg, enc, epk, which
readers that encode it again depend on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from lamina.errors import FormatError, TrustError, UnsupportedError
from lamina.trust.crypto.jwk import ec_public_jwk, public_from_jwk
from lamina.trust.crypto.keys import PrivateKey, PublicKey, require_cryptography
from lamina.trust.strict_json import compact, decode_base64url, encode_base64url, parse_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.padding import OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

CONTENT_ENCRYPTION: Final = "A256GCM"
RSA_ALGORITHMS: Final = ("RSA-OAEP", "RSA-OAEP-256")
EC_ALGORITHMS: Final = {"ECDH-ES+A128KW": 16, "ECDH-ES+A192KW": 24, "ECDH-ES+A256KW": 32}
MAX_JWE_BYTES: Final = 1 << 20
_MAX_RECIPIENTS: Final = 64
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


class _Recipient(NamedTuple):
    header: dict[str, Any]
    encrypted_key: bytes


class _Message(NamedTuple):
    protected: str
    recipients: tuple[_Recipient, ...]
    iv: bytes
    ciphertext: bytes
    tag: bytes


def algorithm_for(key: PublicKey) -> str:
    """Return the key algorithm that go-jose takes for a key: the ``alg`` of its JWK, else by its
    kind.

    Raises UnsupportedError for keys that cannot encrypt and algorithms that do not fit.
    """
    is_rsa = key.kind == "RSA"
    fitting = RSA_ALGORITHMS if is_rsa else tuple(EC_ALGORITHMS)
    if key.kind == "Ed25519":
        raise UnsupportedError(f"the key {key.source} is for signatures and cannot encrypt")
    if not key.algorithm:
        return "RSA-OAEP" if is_rsa else "ECDH-ES+A256KW"
    if key.algorithm not in fitting:
        raise UnsupportedError(f"the key {key.source} wants the algorithm {key.algorithm[:40]!r}")
    return key.algorithm


def encrypt(payload: bytes, recipients: Sequence[PublicKey]) -> bytes:
    """Encrypt for every recipient; any one of their keys opens it.  Returns compact JSON.

    Raises FormatError for keys that cannot encrypt.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if not recipients:
        raise ValueError("a JWE needs a recipient")
    content_key, iv = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
    wrapped = [_wrap(content_key, key) for key in recipients]
    message: dict[str, Any] = {}
    if len(wrapped) == 1:
        header, encrypted_key = wrapped[0]
        protected = {"alg": header.pop("alg"), "enc": CONTENT_ENCRYPTION, **header}
        message["encrypted_key"] = encode_base64url(encrypted_key)
    else:
        protected = {"enc": CONTENT_ENCRYPTION}
        message["recipients"] = [
            {"header": header, "encrypted_key": encode_base64url(key)} for header, key in wrapped
        ]
    head = encode_base64url(compact(protected))
    sealed = AESGCM(content_key).encrypt(iv, payload, head.encode("ascii"))
    message["iv"] = encode_base64url(iv)
    message["ciphertext"] = encode_base64url(sealed[:-_TAG_BYTES])
    message["tag"] = encode_base64url(sealed[-_TAG_BYTES:])
    return compact({"protected": head, **message})


def decrypt(text: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """Return the payload, opened with the first key that fits one of the recipients.

    Raises FormatError for what is no JWE, UnsupportedError for algorithms that are not allowed,
    TrustError if no key opens it.
    """
    require_cryptography()
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    message = _parse(text)
    sealed, head = message.ciphertext + message.tag, message.protected.encode("ascii")
    for recipient, key in product(message.recipients, keys):
        content_key = _unwrap(recipient, key)
        if content_key is not None:
            with suppress(InvalidTag):
                return AESGCM(content_key).decrypt(message.iv, sealed, head)
    raise TrustError("none of the keys given opens the JWE")


def _parse(text: bytes) -> _Message:
    if len(text) > MAX_JWE_BYTES:
        raise FormatError(f"the JWE has {len(text)} bytes, more than {MAX_JWE_BYTES}")
    document = parse_object(text, "JWE") if text.lstrip()[:1] == b"{" else _compact_form(text)
    unknown = document.keys() - _MEMBERS
    if unknown:
        raise FormatError(f"the JWE has an unknown member {min(unknown)[:40]!r}")
    if "aad" in document:
        raise UnsupportedError("the JWE has additional authenticated data")
    protected = document.get("protected")
    if not isinstance(protected, str):
        raise FormatError("the JWE has no protected header")
    shared = parse_object(decode_base64url(protected, "protected header of the JWE"), "JWE header")
    shared = _joined(shared, document.get("unprotected"))
    message = _Message(
        protected,
        tuple(_recipients(document, shared)),
        decode_base64url(document.get("iv"), "iv of the JWE", _NONCE_BYTES),
        decode_base64url(document.get("ciphertext"), "ciphertext of the JWE"),
        decode_base64url(document.get("tag"), "tag of the JWE", _TAG_BYTES),
    )
    for recipient in message.recipients:
        _check_header(recipient.header)
    return message


_HEADERS: Final = ("protected", "unprotected", "header")
_MEMBERS: Final = frozenset(
    (*_HEADERS, "recipients", "encrypted_key", "iv", "ciphertext", "tag", "aad")
)


def _compact_form(text: bytes) -> dict[str, Any]:
    try:
        parts = text.strip().decode("ascii").split(".")
    except UnicodeDecodeError:
        raise FormatError("the JWE is not ASCII") from None
    if len(parts) != 5:
        raise FormatError("the text is no JWE")
    return dict(zip(("protected", "encrypted_key", "iv", "ciphertext", "tag"), parts, strict=True))


def _recipients(document: dict[str, Any], shared: dict[str, Any]) -> list[_Recipient]:
    entries = document.get("recipients", [document])
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_RECIPIENTS:
        raise FormatError("the JWE has no recipients, or too many")
    found = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise FormatError("a recipient of the JWE is no object")
        header = _joined(shared, entry.get("header"))
        key = decode_base64url(entry.get("encrypted_key"), "encrypted_key of the JWE")
        found.append(_Recipient(header, key))
    return found


def _joined(header: dict[str, Any], more: Any) -> dict[str, Any]:
    """RFC 7516 §7.2.1: the headers' names must be disjoint."""
    if more is None:
        return header
    if not isinstance(more, dict) or header.keys() & more.keys():
        raise FormatError("the headers of the JWE contradict each other")
    return {**header, **more}


def _check_header(header: dict[str, Any]) -> None:
    if "crit" in header or "zip" in header:
        raise UnsupportedError("the JWE uses extensions or compression")
    if header.get("enc") != CONTENT_ENCRYPTION:
        raise UnsupportedError(f"the JWE is encrypted with {str(header.get('enc'))[:40]!r}")
    algorithm = str(header.get("alg"))
    if algorithm not in RSA_ALGORITHMS and algorithm not in EC_ALGORITHMS:
        raise UnsupportedError(
            f"the key of the JWE is wrapped with {algorithm[:40]!r}, which is not allowed"
        )


def _wrap(content_key: bytes, recipient: PublicKey) -> tuple[dict[str, Any], bytes]:
    algorithm = algorithm_for(recipient)
    if algorithm in RSA_ALGORITHMS:
        rsa_key = cast("RSAPublicKey", recipient.key)
        try:
            return {"alg": algorithm}, rsa_key.encrypt(content_key, _oaep(algorithm))
        except ValueError:
            raise FormatError(
                f"the key {recipient.source} does not encrypt: its numbers are no RSA key"
            ) from None
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    public = cast("EllipticCurvePublicKey", recipient.key)
    ephemeral = ec.generate_private_key(public.curve)
    wrapping_key = _agree(ephemeral, public, algorithm, b"", b"")
    header = {"alg": algorithm, "epk": ec_public_jwk(ephemeral.public_key())}
    return header, aes_key_wrap(wrapping_key, content_key)


def _unwrap(recipient: _Recipient, key: PrivateKey) -> bytes | None:
    """Return the content key, or None if this key is not the recipient's."""
    algorithm = recipient.header["alg"]
    is_rsa = algorithm in RSA_ALGORITHMS
    content_key: bytes | None
    if is_rsa != (key.kind == "RSA") or key.kind == "Ed25519":
        return None
    if is_rsa:
        try:
            rsa_key = cast("RSAPrivateKey", key.key)
            content_key = rsa_key.decrypt(recipient.encrypted_key, _oaep(algorithm))
        except ValueError:
            return None
    else:
        content_key = _unwrap_ec(recipient, cast("EllipticCurvePrivateKey", key.key), algorithm)
    return content_key if content_key is not None and len(content_key) == _KEY_BYTES else None


def _unwrap_ec(recipient: _Recipient, key: EllipticCurvePrivateKey, algorithm: str) -> bytes | None:
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    epk = recipient.header.get("epk")
    if not isinstance(epk, dict):
        raise FormatError("the JWE has no ephemeral key")
    public, _ = public_from_jwk(epk, "ephemeral key of the JWE")
    if getattr(public, "curve", None) is None or not _same_curve(public, key):
        return None
    apu, apv = (
        decode_base64url(recipient.header.get(name, ""), f"{name} of the JWE")
        for name in ("apu", "apv")
    )
    wrapping_key = _agree(key, cast("EllipticCurvePublicKey", public), algorithm, apu, apv)
    try:
        return aes_key_unwrap(wrapping_key, recipient.encrypted_key)
    except (InvalidUnwrap, ValueError):
        return None


def _same_curve(public: Any, private: EllipticCurvePrivateKey) -> bool:
    return bool(public.curve.name == private.curve.name)


def _oaep(algorithm: str) -> OAEP:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    # RFC 7518 §4.3: plain RSA-OAEP means SHA-1, whose weakness does not matter in OAEP.
    name = hashes.SHA256 if algorithm == "RSA-OAEP-256" else hashes.SHA1
    return padding.OAEP(padding.MGF1(name()), name(), None)


def _agree(
    private: EllipticCurvePrivateKey,
    public: EllipticCurvePublicKey,
    algorithm: str,
    apu: bytes,
    apv: bytes,
) -> bytes:
    """Key agreement with the Concat KDF (RFC 7518 §4.6.2)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

    size_bytes = EC_ALGORITHMS[algorithm]
    information = b"".join(
        len(part).to_bytes(4, "big") + part for part in (algorithm.encode("ascii"), apu, apv)
    )
    information += (size_bytes * 8).to_bytes(4, "big")
    shared = private.exchange(ec.ECDH(), public)
    return ConcatKDFHash(hashes.SHA256(), size_bytes, information).derive(shared)
