"""The cipher of ocicrypt, AES_256_CTR_HMAC_SHA256.

What: AES-256 in CTR mode over a whole stream, the 16-byte nonce being the first counter block
(128-bit, big-endian), and HMAC-SHA-256 with the same key over the ciphertext.  Nothing but the
ciphertext is authenticated, so this is for whole objects under a signed digest.  Source: ocicrypt,
``blockcipher/blockcipher_aes_ctr.go``, described in its own words.
"""

from __future__ import annotations

import hashlib
import hmac
import io
from typing import TYPE_CHECKING, BinaryIO, Final

from lamina.errors import IntegrityError
from lamina.trust.keys import require_cryptography
from lamina.trust.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

CIPHER: Final = "AES_256_CTR_HMAC_SHA256"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16
HMAC_BYTES: Final = 32


class Encryptor:
    """Encrypts a stream, piece by piece; ``hmac`` is of all the ciphertext so far."""

    def __init__(self, key: Secret, nonce: bytes) -> None:
        self._cipher = _counter_mode(key, nonce)
        self._hmac = new_hmac(key)

    def update(self, data: bytes) -> bytes:
        """The next piece of ciphertext, as long as the plaintext."""
        sealed = self._cipher.update(data)
        self._hmac.update(sealed)
        return sealed

    def hmac(self) -> bytes:
        """32 bytes for the public options."""
        return self._hmac.digest()


def new_hmac(key: Secret) -> hmac.HMAC:
    """The authenticator; feed it all the ciphertext, then :func:`check_hmac`."""
    return hmac.new(key.reveal(), digestmod=hashlib.sha256)


def check_hmac(computed: hmac.HMAC, promised: bytes, what: str) -> None:
    """Raise IntegrityError unless the HMAC is the promised one; in constant time."""
    if not hmac.compare_digest(computed.digest(), promised):
        raise IntegrityError(
            f"the HMAC of {what} is wrong: it was changed after it was encrypted",
            hint="fetch the image again; if that does not help, it was tampered with",
        )


class DecryptingStream(io.RawIOBase):
    """The plaintext of a ciphertext stream, which must have been authenticated before.

    Closing it leaves the source open.
    """

    def __init__(self, source: BinaryIO, key: Secret, nonce: bytes) -> None:
        self._source = source
        self._cipher = _counter_mode(key, nonce)

    def read(self, size: int = -1, /) -> bytes:
        """The next plaintext; b"" at the end."""
        return self._cipher.update(self._source.read(size))


def _counter_mode(key: Secret, nonce: bytes) -> CipherContext:
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    # Encryption and decryption are the same operation.
    return Cipher(algorithms.AES256(key.reveal()), modes.CTR(nonce)).encryptor()
