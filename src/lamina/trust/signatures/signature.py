"""Signatures over bytes as cosign makes them: ECDSA (DER) and RSA PKCS#1 v1.5 with SHA-256 whatever
the curve, Ed25519 pure.
"""

from __future__ import annotations

from lamina.trust.crypto.keys import PrivateKey, PublicKey


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Return the signature of some bytes."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    raw = key.key
    if isinstance(raw, rsa.RSAPrivateKey):
        return raw.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(raw, ec.EllipticCurvePrivateKey):
        return raw.sign(data, ec.ECDSA(hashes.SHA256()))
    return raw.sign(data)


def is_signed_by(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Tell whether the signature over the bytes is of the key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    raw = key.key
    try:
        if isinstance(raw, rsa.RSAPublicKey):
            raw.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(raw, ec.EllipticCurvePublicKey):
            raw.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            raw.verify(signature, data)
    except InvalidSignature:
        return False
    return True
