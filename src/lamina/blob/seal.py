"""Sealing of pieces: AES-256-GCM with a key for a blob, bound to the place of every piece.

This is the private class, the default (:mod:`lamina.blob.seal_class` has the others): the blob has
a random 32-byte key and a random 16-byte id; the cipher key is HKDF-Expand-SHA256(key, suite ‖
" chunk" ‖ 0 ‖ id), the nonce is u32 0 ‖ u64 index, so it is used once, and the additional data are
suite ‖ 0 ‖ id ‖ u64 index ‖ u64 length ‖ u64 raw length ‖ u32 flags.  A piece opens at its own
place in its own blob only.

Stored is ciphertext ‖ 16-byte tag.  With padding, zeros are added before encryption, so that
lengths tell less.  Numbers are big-endian.
"""

from __future__ import annotations

import hmac
import os
import struct
from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn

from lamina.errors import FormatError, IntegrityError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SUITE: Final = "cc-rafs/1"
KEY_BYTES: Final = 32
BLOB_ID_BYTES: Final = 16
TAG_BYTES: Final = 16
MAX_PIECES: Final = 1 << 32
COMPRESSED: Final = 1
"""Flag of a piece that is not stored as it is."""
_NONCE: Final = struct.Struct(">IQ")
_BINDING: Final = struct.Struct(">QQQI")


class Padding(Enum):
    """How lengths are hidden: not at all, or by Padmé, at most 12 % (Nikitin et al. 2019, §4)."""

    NONE = "none"
    PADME = "padme"

    def padded(self, size_bytes: int) -> int:
        """Return the length that some bytes are padded to."""
        if self is Padding.NONE or size_bytes < 2:
            return size_bytes
        exponent = size_bytes.bit_length() - 1
        low_bits = max(exponent - exponent.bit_length(), 0)
        mask = (1 << low_bits) - 1
        return size_bytes + mask & ~mask


class HiddenKey:
    """32 secret bytes; they never show."""

    __slots__ = ("_bytes",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise FormatError(f"the key of a sealed blob has {len(key)} bytes, not {KEY_BYTES}")
        self._bytes = key

    def reveal(self) -> bytes:
        """Return the key, for the sealed description that is encrypted itself."""
        return self._bytes

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled")


class BlobKey(HiddenKey):
    """The random key of one private blob."""

    __slots__ = ()

    @classmethod
    def new(cls) -> BlobKey:
        """Return a fresh key: one a blob, never used for another."""
        return cls(os.urandom(KEY_BYTES))


def new_blob_id() -> bytes:
    """Return a random blob id."""
    return os.urandom(BLOB_ID_BYTES)


class PieceSeal:
    """Seals and opens the pieces of one private blob; thread-safe.

    A writer makes it once for a blob and seals every index once; sealing an index again under the
    same key would give two messages one nonce, and raises UsageError.
    """

    __slots__ = ("_cipher", "_head", "_name", "_padding", "_sealed")

    def __init__(self, key: BlobKey, blob_id: bytes, padding: Padding = Padding.NONE) -> None:
        if len(blob_id) != BLOB_ID_BYTES:
            raise FormatError(f"the id of a sealed blob has {len(blob_id)} bytes")
        self._cipher = aes_gcm(_expand(key.reveal(), blob_id))
        self._head = SUITE.encode("ascii") + b"\0" + blob_id
        self._name = blob_id.hex()
        self._padding = padding
        self._sealed: set[int] = set()

    def stored_size(self, size: int) -> int:
        """Return the length that a piece of *size* bytes is stored with."""
        return self._padding.padded(size) + TAG_BYTES

    def seal(self, index: int, data: bytes, raw_size: int, flags: int = 0) -> bytes:
        """Return the stored form of a piece; *raw_size* is its length after decompression."""
        if index in self._sealed or not 0 <= index < MAX_PIECES:
            raise UsageError(f"piece {index} of the sealed blob {self._name} is sealed already")
        self._sealed.add(index)
        padded = data.ljust(self._padding.padded(len(data)), b"\0")
        binding = self._binding(index, len(data), raw_size, flags)
        return self._cipher.encrypt(_NONCE.pack(0, index), padded, binding)

    def open(
        self, index: int, stored: bytes | memoryview, size: int, raw_size: int, flags: int = 0
    ) -> bytes:
        """Return the *size* bytes of a piece.

        Raises IntegrityError unless it is the piece of this place in this blob, unchanged.
        """
        from cryptography.exceptions import InvalidTag

        if memoryview(stored).nbytes != self.stored_size(size):
            raise self._refused(index)
        binding = self._binding(index, size, raw_size, flags)
        try:
            padded = self._cipher.decrypt(_NONCE.pack(0, index), stored, binding)
        except InvalidTag:
            raise self._refused(index) from None
        return padded[:size]

    def _binding(self, index: int, size: int, raw_size: int, flags: int) -> bytes:
        return self._head + _BINDING.pack(index, size, raw_size, flags)

    def _refused(self, index: int) -> IntegrityError:
        return IntegrityError(
            f"piece {index} of the sealed blob {self._name} cannot be opened: it was changed, or "
            "belongs to another place or blob",
            hint="fetch it again from another source",
        )


def _expand(key: bytes, blob_id: bytes) -> bytes:
    """HKDF-Expand of RFC 5869 §2.3 for one block of SHA-256."""
    information = SUITE.encode("ascii") + b" chunk\0" + blob_id
    return hmac.digest(key, information + b"\x01", "sha256")


def aes_gcm(key: bytes) -> AESGCM:
    """Return the cipher of a key.  Raises UnsupportedError without the package ``cryptography``."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise UnsupportedError(
            "sealed images need the Python package 'cryptography'",
            hint="pip install 'lamina[ocicrypt]'",
        ) from None
    return AESGCM(key)
