"""The three classes that a sealed blob can have, of which :mod:`lamina.blob.seal` is the first.

Private (the default): a random key a blob, so nothing of one image equals anything of another.

Tenant (keyed convergent, so that images of one tenant store equal pieces once): the key of a piece
is HMAC-SHA256(tenant key, suite ‖ " tenant" ‖ 0 ‖ message), with the message SHA-256(bytes) ‖ u64
raw length ‖ u64 padded length ‖ u32 flags.  The nonce is 0 and there are no additional data: all
that decides the plaintext goes into the key, so that no key ever sees two messages.  Only who
builds has the tenant key; who reads gets the keys of the pieces, in the encrypted description, and
so can neither seal for the tenant nor test whether another image has known content.  The place of a
piece is bound by the Merkle tree (:mod:`lamina.blob.merkle`) alone.

Public: the pieces as they are, for layers that everybody may read; their Merkle tree binds them.

Numbers are big-endian.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from abc import abstractmethod
from enum import Enum
from typing import Final, NoReturn, Protocol

from lamina.blob.seal import KEY_BYTES, SUITE, TAG_BYTES, HiddenKey, Padding, aes_gcm
from lamina.errors import FormatError, IntegrityError, UsageError

_MESSAGE: Final = struct.Struct(">32sQQI")
MESSAGE_BYTES: Final = _MESSAGE.size
_ZERO_NONCE: Final = bytes(12)


class SealClass(Enum):
    """What the pieces of a sealed blob may be shared with."""

    PRIVATE = "private"
    TENANT = "tenant"
    PUBLIC = "public"


class PieceOpener(Protocol):
    """Opens the pieces of one sealed blob; threads share it."""

    @abstractmethod
    def stored_size(self, size: int) -> int:
        """Return the length that a piece of *size* bytes is stored with."""

    @abstractmethod
    def open(
        self, index: int, stored: bytes | memoryview, size: int, raw_size: int, flags: int = 0
    ) -> bytes | memoryview:
        """Return the *size* bytes of a piece whose leaf was right.  Raises IntegrityError."""


class TenantKey(HiddenKey):
    """The key that the keys of all pieces of one tenant derive from."""

    __slots__ = ()

    @classmethod
    def parse(cls, data: bytes, source: str) -> TenantKey:
        """From a key file: 32 bytes, or 64 hex digits.  Raises UsageError."""
        text = data.strip()
        if len(data) != KEY_BYTES and len(text) == 2 * KEY_BYTES:
            try:
                return cls(bytes.fromhex(text.decode("ascii")))
            except ValueError:
                pass
        if len(data) != KEY_BYTES:
            raise UsageError(
                f"{source} is no tenant key of {KEY_BYTES} bytes",
                hint=f"make one: head -c {KEY_BYTES} /dev/urandom > FILE",
            )
        return cls(data)


class _TenantClass:
    """What building and reading have in common."""

    __slots__ = ("_padding",)

    def __init__(self, padding: Padding) -> None:
        self._padding = padding

    def stored_size(self, size: int) -> int:
        """Return the length that a piece of *size* bytes is stored with."""
        return self._padding.padded(size) + TAG_BYTES


class TenantSeal(_TenantClass):
    """Seals pieces so that equal ones of the same tenant look the same; thread-safe."""

    __slots__ = ("_key",)

    def __init__(self, key: TenantKey, padding: Padding = Padding.NONE) -> None:
        super().__init__(padding)
        self._key = key

    def message(self, data: bytes, raw_size: int, flags: int = 0) -> bytes:
        """Return what decides the key of a piece, :data:`MESSAGE_BYTES` long; no secret of the
        tenant.
        """
        padded = self._padding.padded(len(data))
        return _MESSAGE.pack(hashlib.sha256(data).digest(), raw_size, padded, flags)

    def seal(self, data: bytes, message: bytes) -> bytes:
        """Return the stored form of a piece with this message."""
        padded = data.ljust(self._padding.padded(len(data)), b"\0")
        return aes_gcm(self._key_of(message)).encrypt(_ZERO_NONCE, padded, None)

    def keys(self, messages: bytes) -> PieceKeys:
        """Return the keys of the pieces with these messages."""
        starts = range(0, len(messages), MESSAGE_BYTES)
        found = [self._key_of(messages[start : start + MESSAGE_BYTES]) for start in starts]
        return PieceKeys(b"".join(found))

    def _key_of(self, message: bytes) -> bytes:
        label = SUITE.encode("ascii") + b" tenant\0"
        return hmac.digest(self._key.reveal(), label + message, "sha256")


class PieceKeys:
    """The keys of the pieces of a blob of the tenant class, in their order; they never show."""

    __slots__ = ("_bytes",)

    def __init__(self, keys: bytes) -> None:
        if len(keys) % KEY_BYTES:
            raise FormatError(f"the keys of a sealed blob have {len(keys)} bytes")
        self._bytes = keys

    def __len__(self) -> int:
        return len(self._bytes) // KEY_BYTES

    def reveal(self) -> bytes:
        """Return all keys, for the sealed description that is encrypted itself."""
        return self._bytes

    def key(self, index: int) -> bytes:
        """Return the key of one piece."""
        return self._bytes[index * KEY_BYTES : (index + 1) * KEY_BYTES]

    def __repr__(self) -> str:
        return f"PieceKeys({len(self)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


class TenantPieces(_TenantClass):
    """Opens the pieces of a blob of the tenant class; thread-safe."""

    __slots__ = ("_keys",)

    def __init__(self, keys: PieceKeys, padding: Padding = Padding.NONE) -> None:
        super().__init__(padding)
        self._keys = keys

    def open(
        self,
        index: int,
        stored: bytes | memoryview,
        size: int,
        raw_size: int,  # noqa: ARG002 - in the key, or the leaf
        flags: int = 0,  # noqa: ARG002
    ) -> bytes:
        """Return the *size* bytes of a piece.  Raises IntegrityError if it is not the one of its
        key.
        """
        from cryptography.exceptions import InvalidTag

        if not 0 <= index < len(self._keys) or len(stored) != self.stored_size(size):
            raise _refused(index)
        try:
            padded = aes_gcm(self._keys.key(index)).decrypt(_ZERO_NONCE, stored, None)
        except InvalidTag:
            raise _refused(index) from None
        return padded[:size]


def _refused(index: int) -> IntegrityError:
    return IntegrityError(
        f"piece {index} of the tenant class cannot be opened: it was changed, or belongs to "
        "another place",
        hint="fetch it again from another source",
    )


class PublicPieces:
    """Pieces that everybody may read: they are stored as they are."""

    __slots__ = ()

    def stored_size(self, size: int) -> int:
        """*size*."""
        return size

    def open(
        self,
        index: int,
        stored: bytes | memoryview,
        size: int,
        raw_size: int,  # noqa: ARG002 - in the key, or the leaf
        flags: int = 0,  # noqa: ARG002
    ) -> bytes | memoryview:
        """Return the bytes themselves, which their leaf has proven."""
        if len(stored) != size:
            raise IntegrityError(f"piece {index} of a public blob has {len(stored)} bytes")
        return stored
