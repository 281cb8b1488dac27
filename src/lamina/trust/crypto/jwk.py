"""JSON Web Keys as key objects and back (RFC 7517; RFC 7518 §6; RFC 8037 for Ed25519)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lamina.errors import FormatError, UnsupportedError
from lamina.trust.strict_json import decode_base64url, encode_base64url, text_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from lamina.trust.crypto.keys import RawPrivateKey, RawPublicKey

COORDINATE_BYTES: Final = {"P-256": 32, "P-384": 48, "P-521": 66}
_MAX_NUMBER_BYTES: Final = 2048


def public_from_jwk(jwk: dict[str, Any], what: str) -> tuple[RawPublicKey, str]:
    """Return the public key of a JWK, and its ``alg`` ("" if it has none); private members are not
    read.

    Raises FormatError for numbers that are no key, UnsupportedError for other kinds.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    algorithm = text_of(jwk.get("alg", ""), f"alg of the {what}")
    kind = jwk.get("kty")
    try:
        if kind == "RSA":
            exponent, modulus = _number(jwk, "e", what), _number(jwk, "n", what)
            if not modulus & 1:
                # OpenSSL takes such a key and fails when it encrypts.
                raise FormatError(f"the numbers of the {what} are no key")
            return rsa.RSAPublicNumbers(exponent, modulus).public_key(), algorithm
        if kind == "EC":
            curve, size = _curve(jwk, what)
            x, y = (_coordinate(jwk, name, what, size) for name in "xy")
            return ec.EllipticCurvePublicNumbers(x, y, curve).public_key(), algorithm
        if kind == "OKP" and jwk.get("crv") == "Ed25519":
            data = decode_base64url(jwk.get("x"), f"x of the {what}", 32)
            return ed25519.Ed25519PublicKey.from_public_bytes(data), algorithm
    except ValueError:
        raise FormatError(f"the numbers of the {what} are no key") from None
    raise UnsupportedError(f"the {what} is a JWK of the kind {str(kind)[:20]!r}")


def private_from_jwk(jwk: dict[str, Any], what: str) -> RawPrivateKey:
    """Return the private key of a JWK.  Raises FormatError, UnsupportedError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    kind = jwk.get("kty")
    if "d" not in jwk:
        raise FormatError(f"the {what} has no private part")
    try:
        if kind == "RSA":
            e, n, d, p, q, dp, dq, qi = (
                _number(jwk, name, what) for name in ("e", "n", "d", "p", "q", "dp", "dq", "qi")
            )
            public = rsa.RSAPublicNumbers(e, n)
            return rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, public).private_key()
        if kind == "EC":
            curve, size = _curve(jwk, what)
            x, y, d = (_coordinate(jwk, name, what, size) for name in ("x", "y", "d"))
            point = ec.EllipticCurvePublicNumbers(x, y, curve)
            return ec.EllipticCurvePrivateNumbers(d, point).private_key()
        if kind == "OKP" and jwk.get("crv") == "Ed25519":
            data = decode_base64url(jwk.get("d"), f"d of the {what}", 32)
            return ed25519.Ed25519PrivateKey.from_private_bytes(data)
    except ValueError:
        raise FormatError(f"the numbers of the {what} are no key") from None
    raise UnsupportedError(f"the {what} is a JWK of the kind {str(kind)[:20]!r}")


def ec_public_jwk(key: EllipticCurvePublicKey) -> dict[str, str]:
    """Return the members crv, kty, x, y, in this order: readers that hash the text again depend on
    it.
    """
    from lamina.trust.crypto.keys import CURVES

    name = CURVES[key.curve.name]
    numbers, size = key.public_numbers(), COORDINATE_BYTES[name]
    return {
        "crv": name,
        "kty": "EC",
        "x": encode_base64url(numbers.x.to_bytes(size, "big")),
        "y": encode_base64url(numbers.y.to_bytes(size, "big")),
    }


def _curve(jwk: dict[str, Any], what: str) -> tuple[Any, int]:
    from cryptography.hazmat.primitives.asymmetric import ec

    name = jwk.get("crv")
    curves: dict[str, Any] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
    if not isinstance(name, str) or name not in curves:
        raise UnsupportedError(f"the {what} is on the curve {str(name)[:20]!r}")
    return curves[name](), COORDINATE_BYTES[name]


def _number(jwk: dict[str, Any], name: str, what: str) -> int:
    data = decode_base64url(jwk.get(name), f"{name} of the {what}")
    if not 0 < len(data) <= _MAX_NUMBER_BYTES:
        raise FormatError(f"the {name} of the {what} has {len(data)} bytes")
    return int.from_bytes(data, "big")


def _coordinate(jwk: dict[str, Any], name: str, what: str, size_bytes: int) -> int:
    return int.from_bytes(
        decode_base64url(jwk.get(name), f"{name} of the {what}", size_bytes), "big"
    )
