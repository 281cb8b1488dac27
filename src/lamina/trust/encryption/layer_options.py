"""The two JSON objects that describe an encrypted layer (ocicrypt).

Public options stand in an annotation, in clear; private options are what the recipients' keys wrap.
Reading is stricter than ocicrypt itself: one cipher, every field there and of its length, no other
field, no cipher options in public, where they would override the secret ones without being
authenticated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Self

from lamina.errors import FormatError, UnsupportedError
from lamina.oci.reference import is_digest
from lamina.trust import strict_json
from lamina.trust.crypto.ctr_hmac import CIPHER, HMAC_BYTES, KEY_BYTES, NONCE_BYTES
from lamina.trust.crypto.secret import Secret

_LIMIT_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class PublicOptions:
    """Cipher and HMAC of the ciphertext."""

    hmac: bytes

    def encode(self) -> bytes:
        """Return the JSON text."""
        return strict_json.compact(
            {"cipher": CIPHER, "hmac": strict_json.encode_base64(self.hmac), "cipheroptions": {}}
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Parse the annotation of a layer; raises FormatError, UnsupportedError."""
        what = "public options of an encrypted layer"
        document = strict_json.parse_object(data, what, _LIMIT_BYTES)
        strict_json.expect_keys(document, what, ("cipher", "hmac"), ("cipheroptions",))
        if document["cipher"] != CIPHER:
            raise UnsupportedError(
                f"the layer is encrypted with {str(document['cipher'])[:60]!r}, not {CIPHER}"
            )
        if document.get("cipheroptions") not in ({}, None):
            raise FormatError(
                f"the {what} have cipher options, which would override the secret ones",
                hint="somebody changed the manifest of this image",
            )
        return cls(strict_json.decode_base64(document["hmac"], f"HMAC in the {what}", HMAC_BYTES))


@dataclass(frozen=True, slots=True)
class PrivateOptions:
    """Key, nonce, and a digest of the plaintext that different writers mean differently."""

    key: Secret
    nonce: bytes = field(repr=False)
    digest: str

    @classmethod
    def new(cls, digest: str) -> Self:
        """Return a fresh random key and nonce for one layer."""
        return cls(Secret(os.urandom(KEY_BYTES)), os.urandom(NONCE_BYTES), digest)

    def encode(self) -> bytes:
        """Return the JSON text, to be wrapped at once."""
        return strict_json.compact(
            {
                "symkey": strict_json.encode_base64(self.key.reveal()),
                "digest": self.digest,
                "cipheroptions": {"nonce": strict_json.encode_base64(self.nonce)},
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Parse what was unwrapped; raises FormatError, which never has the text in it."""
        what = "private options of an encrypted layer"
        document = strict_json.parse_object(data, what, _LIMIT_BYTES)
        strict_json.expect_keys(document, what, ("symkey", "digest", "cipheroptions"))
        options = strict_json.expect_keys(document["cipheroptions"], what, ("nonce",))
        digest = strict_json.text_of(document["digest"], f"digest in the {what}")
        if not is_digest(digest):
            raise FormatError(f"the digest in the {what} is none")
        key = strict_json.decode_base64(document["symkey"], f"key in the {what}", KEY_BYTES)
        nonce = strict_json.decode_base64(options["nonce"], f"nonce in the {what}", NONCE_BYTES)
        return cls(Secret(key), nonce, digest)
