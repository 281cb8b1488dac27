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
from lamina.trust.crypto.keys import require_cryptography
from lamina.trust.crypto.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

CIPHER: Final = "AES_256_CTR_HMAC_SHA256"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16
HMAC_BYTES: Final = 32
_BLOCK_BYTES: Final = 16


class Encryptor:
    """Encrypts a stream, piece by piece; ``hmac`` is of all the ciphertext so far."""

    def __init__(self, key: Secret, nonce: bytes) -> None:
        self._cipher = _counter_mode(key, nonce)
        self._hmac = new_hmac(key)

    def update(self, data: bytes) -> bytes:
        """Return the next piece of ciphertext, as long as the plaintext."""
        sealed = self._cipher.update(data)
        self._hmac.update(sealed)
        return sealed

    def hmac(self) -> bytes:
        """32 bytes for the public options."""
        return self._hmac.digest()


def new_hmac(key: Secret) -> hmac.HMAC:
    """Return the authenticator; feed it all the ciphertext, then :func:`check_hmac`."""
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
        """Return the next plaintext; b"" at the end."""
        return self._cipher.update(self._source.read(size))


class Decryptor:
    """Decrypts a stream, piece by piece, from its begin or the byte *offset* on."""

    def __init__(self, key: Secret, nonce: bytes, offset: int = 0) -> None:
        block, skip = divmod(offset, _BLOCK_BYTES)
        counter = (int.from_bytes(nonce, "big") + block) % (1 << 8 * NONCE_BYTES)
        self._cipher = _counter_mode(key, counter.to_bytes(NONCE_BYTES, "big"))
        self._cipher.update(bytes(skip))

    def update(self, data: bytes | memoryview) -> bytes:
        """Return the next piece of plaintext, as long as the ciphertext."""
        return self._cipher.update(data)


def _counter_mode(key: Secret, nonce: bytes) -> CipherContext:
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    # Encryption and decryption are the same operation.
    return Cipher(algorithms.AES256(key.reveal()), modes.CTR(nonce)).encryptor()
