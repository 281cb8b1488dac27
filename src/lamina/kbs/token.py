"""The attestation token of a broker: an EAR in a JWT, signed with a key that lives as long as the
broker (RFC 7515, RFC 7519; ES256).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from lamina.errors import FormatError, TrustError
from lamina.kbs.rules import Attested
from lamina.trust import strict_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
_NUMBER_BYTES: Final = 32
_MAX_TOKEN_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Makes and checks tokens of one broker."""

    key: EllipticCurvePrivateKey = field(repr=False)
    lifetime_s: float

    @classmethod
    def new(cls, lifetime_s: float) -> Self:
        """With a new key."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls(ec.generate_private_key(ec.SECP256R1()), lifetime_s)

    def issue(self, attested: Attested, runtime: dict[str, Any]) -> str:
        """Return a token about a guest: what was attested, and the nonce and key it is bound to."""
        from lamina.trust.crypto.jwk import ec_public_jwk

        now = int(time.time())
        evidence = {
            attested.tee: {"launch_digest": attested.measurement},
            "runtime_data_claims": runtime,
        }
        module = {"ear.status": "none", "ear.veraison.annotated-evidence": evidence}
        claims = {
            "eat_profile": _PROFILE,
            "iat": now,
            "exp": now + int(self.lifetime_s),
            "submods": {"cpu0": module},
        }
        header = {"alg": "ES256", "typ": "JWT", "jwk": ec_public_jwk(self.key.public_key())}
        parts = [strict_json.encode_base64url(strict_json.compact(x)) for x in (header, claims)]
        signed = ".".join(parts)
        return f"{signed}.{strict_json.encode_base64url(self._sign(signed.encode()))}"

    def check(self, token: str) -> tuple[Attested, dict[str, Any]]:
        """Return what a token of ours says: the attested guest and its key.

        Raises FormatError, TrustError; nothing is read before the signature is right.
        """
        parts = token.split(".") if len(token) <= _MAX_TOKEN_BYTES else []
        if len(parts) != 3:
            raise FormatError("the token is none")
        signature = strict_json.decode_base64url(parts[2], "signature of the token")
        self._verify(signature, f"{parts[0]}.{parts[1]}".encode("utf-8", "replace"))
        claims = strict_json.parse_object(
            strict_json.decode_base64url(parts[1], "claims of the token"), "token"
        )
        if time.time() >= claims["exp"]:
            raise TrustError("the token has expired")
        evidence = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
        runtime = evidence.pop("runtime_data_claims")
        ((tee, found),) = evidence.items()
        return Attested(tee, found["launch_digest"]), runtime["tee-pubkey"]

    def _sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        r, s = utils.decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(_NUMBER_BYTES, "big") + s.to_bytes(_NUMBER_BYTES, "big")

    def _verify(self, signature: bytes, data: bytes) -> None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        if len(signature) != 2 * _NUMBER_BYTES:
            raise FormatError("the signature of the token has another length")
        r, s = (int.from_bytes(x, "big") for x in (signature[:32], signature[32:]))
        try:
            encoded = utils.encode_dss_signature(r, s)
            self.key.public_key().verify(encoded, data, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            raise TrustError("the token is not of this broker") from None
