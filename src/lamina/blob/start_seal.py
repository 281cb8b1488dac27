"""Start artifacts of sealed images, sealed as well: their pages are content of the image, and their
list of files tells what is in it and what is run.

The secret is made of the keys in the sealed description, so whoever opens the image opens them, and
nobody else.  An artifact as stored, numbers big-endian::

    0   8   b"LAMSEAL1"
    8   32  salt, random: each artifact has a key of its own
    40      segments of 64 KiB, each followed by its 16-byte tag

The segments hold u64 length of the artifact, the artifact, and zeros.  Segment n has the nonce
u32 (1 for the last, else 0) ‖ u64 n, so that none is moved, left out, or cut off (the STREAM
construction, Hoang et al. 2015), and all have the digest of the manifest as additional data.  Key:
HKDF-SHA256 (RFC 5869) of the secret with the salt and "cc-rafs/1 start".

A label is base64 of salt ‖ ciphertext ‖ tag, one message under a key made with "cc-rafs/1 label",
padded to a multiple of 256 bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final

from lamina.blob.seal import SUITE, TAG_BYTES, HiddenKey, aes_gcm
from lamina.errors import FormatError, IntegrityError, UnsupportedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from lamina.blob.sealed_description import SealedBlob

MAGIC: Final = b"LAMSEAL1"
SALT_BYTES: Final = 32
HEAD_BYTES: Final = len(MAGIC) + SALT_BYTES
SEGMENT_BYTES: Final = 64 << 10
MAX_LABEL_BYTES: Final = 16 << 10

_STORED_BYTES: Final = SEGMENT_BYTES + TAG_BYTES
_LABEL_STEP: Final = 256
_LENGTH: Final = struct.Struct(">Q")
_NONCE: Final = struct.Struct(">IQ")
_ONLY: Final = _NONCE.pack(1, 0)


def start_secret(blobs: Sequence[SealedBlob]) -> HiddenKey | None:
    """Return the secret of an image's start artifacts; None if its data blobs have no keys, as all
    layers are public.
    """
    keys = [found.reveal() for blob in blobs if (found := blob.key or blob.piece_keys)]
    if not keys:
        return None
    whole = hashlib.sha256(b"cc-rafs/1 start secret\0")
    for key in keys:
        whole.update(hashlib.sha256(key).digest())
    return HiddenKey(whole.digest())


def seal_start(artifact: bytes, secret: HiddenKey, manifest_digest: bytes) -> bytes:
    """Return the stored form of an artifact of the manifest with that digest, 32 bytes."""
    salt = os.urandom(SALT_BYTES)
    cipher = _cipher(secret, salt, b"start")
    plain = _LENGTH.pack(len(artifact)) + artifact
    count = -(-len(plain) // SEGMENT_BYTES)
    plain = plain.ljust(count * SEGMENT_BYTES, b"\0")
    parts = [
        cipher.encrypt(
            _NONCE.pack(number == count - 1, number),
            plain[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES],
            manifest_digest,
        )
        for number in range(count)
    ]
    return b"".join((MAGIC, salt, *parts))


class SealedStart(BytesIO):
    """An artifact as a stream, opened segment by segment as it arrives."""

    def __init__(
        self, inner: BinaryIO, size_bytes: int, secret: HiddenKey, manifest_digest: bytes
    ) -> None:
        """Own *inner*, of which *size_bytes* are stored.  Raises FormatError for a length that no
        artifact has.
        """
        super().__init__()
        self._inner = inner
        self._secret = secret
        self._binding = manifest_digest
        self._count, rest = divmod(size_bytes - HEAD_BYTES, _STORED_BYTES)
        if self._count < 1 or rest:
            raise FormatError(f"a sealed start artifact does not have {size_bytes} bytes")
        self._cipher: AESGCM | None = None
        self._next = 0
        self._left = 0
        self._plain = b""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return some of the next bytes, b"" at the end.

        Raises IntegrityError for a segment that does not belong there, FormatError for an artifact
        that is cut off.
        """
        if not self._plain and self._next < self._count:
            self._plain = self._open_segment()
        size = len(self._plain) if size is None or size < 0 else size
        data, self._plain = self._plain[:size], self._plain[size:]
        return data

    def _open_segment(self) -> bytes:
        from cryptography.exceptions import InvalidTag

        if self._cipher is None:
            head = self._exactly(HEAD_BYTES)
            if not head.startswith(MAGIC):
                raise FormatError("the start artifact of the sealed image is not sealed")
            self._cipher = _cipher(self._secret, head[len(MAGIC) :], b"start")
        number, self._next = self._next, self._next + 1
        is_last = self._next == self._count
        stored = self._exactly(_STORED_BYTES)
        try:
            plain = self._cipher.decrypt(_NONCE.pack(is_last, number), stored, self._binding)
        except InvalidTag:
            raise IntegrityError(
                "the start artifact of the sealed image was changed, or is not one of it"
            ) from None
        if is_last:
            # The digest of what is stored is known with its end.
            self._inner.read(1)
        if number == 0:
            (self._left,) = _LENGTH.unpack_from(plain)
            plain = plain[_LENGTH.size :]
        data = plain[: self._left]
        self._left -= len(data)
        if any(plain[len(data) :]) or (is_last and self._left) or not data:
            raise FormatError("the start artifact of the sealed image has a wrong length")
        return data

    def _exactly(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            part = self._inner.read(size_bytes - len(data))
            if not part:
                raise FormatError("the start artifact of the sealed image is cut off")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Close the stream below."""
        self._inner.close()
        super().close()


def seal_label(label: bytes, secret: HiddenKey, manifest_digest: bytes) -> str:
    """Return a short text for an annotation.  It must have no zeros at its end."""
    salt = os.urandom(SALT_BYTES)
    padded = label.ljust(-(-len(label) // _LABEL_STEP) * _LABEL_STEP, b"\0")
    sealed = _cipher(secret, salt, b"label").encrypt(_ONLY, padded, manifest_digest)
    return base64.b64encode(salt + sealed).decode("ascii")


def open_label(text: str, secret: HiddenKey, manifest_digest: bytes) -> bytes | None:
    """Return what :func:`seal_label` sealed, None if it is not of this image."""
    from cryptography.exceptions import InvalidTag

    if len(text) > MAX_LABEL_BYTES:
        return None
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeError, binascii.Error):
        return None
    salt, sealed = data[:SALT_BYTES], data[SALT_BYTES:]
    if len(sealed) < TAG_BYTES:
        return None
    try:
        plain = _cipher(secret, salt, b"label").decrypt(_ONLY, sealed, manifest_digest)
    except InvalidTag:
        return None
    return plain.rstrip(b"\0")


def require_secret(secret: HiddenKey | None) -> HiddenKey:
    """Return it.  Raises UnsupportedError if there is none."""
    if secret is None:
        raise UnsupportedError(
            "all layers of the sealed image are public, so nothing keeps its start artifacts secret"
        )
    return secret


def _cipher(secret: HiddenKey, salt: bytes, purpose: bytes) -> AESGCM:
    """HKDF for one block of SHA-256."""
    extracted = hmac.digest(salt, secret.reveal(), "sha256")
    information = SUITE.encode("ascii") + b" " + purpose
    return aes_gcm(hmac.digest(extracted, information + b"\x01", "sha256"))
