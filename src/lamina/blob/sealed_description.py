"""What the encrypted metadata layer of a sealed image says of its data blobs: keys and roots.

A JSON file, ``image/image.sealed``, that is only ever written into a layer that is encrypted: it
has the keys in it.  Unknown fields are refused, so that a reader never leaves out what it does not
know.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from lamina.blob.merkle import HASH_BYTES
from lamina.blob.seal import BLOB_ID_BYTES, SUITE, BlobKey, Padding
from lamina.errors import FormatError, UnsupportedError

FILE_NAME: Final = "image/image.sealed"
CONFIG_NAME: Final = "image/config.json"
"""The image configuration, which is not for everybody either."""
MAX_DESCRIPTION_BYTES: Final = 4 << 20
_VERSION: Final = 1
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{2}){1,64}\Z")]


class SealedBlob(msgspec.Struct, frozen=True, kw_only=True):
    """One private data blob: its random id, key, number of pieces, ciphertext size, Merkle root."""

    blob_id: bytes
    key: BlobKey
    piece_count: int
    size_bytes: int
    root: bytes
    padding: Padding = Padding.NONE


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    id: _Hex
    key: str
    pieces: _Count
    size: _Size
    root: _Hex
    padding: Padding


class _Description(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: int
    suite: str
    blobs: tuple[_Entry, ...]


def encode_description(blobs: Sequence[SealedBlob]) -> bytes:
    """The JSON text, with the keys in it: encrypt it."""
    entries = tuple(
        _Entry(
            id=blob.blob_id.hex(),
            key=base64.b64encode(blob.key.reveal()).decode("ascii"),
            pieces=blob.piece_count,
            size=blob.size_bytes,
            root=blob.root.hex(),
            padding=blob.padding,
        )
        for blob in blobs
    )
    return msgspec.json.encode(_Description(version=_VERSION, suite=SUITE, blobs=entries))


def decode_description(data: bytes) -> tuple[SealedBlob, ...]:
    """Raises FormatError, which never quotes the text; UnsupportedError for another suite."""
    if len(data) > MAX_DESCRIPTION_BYTES:
        raise FormatError(f"the sealed description has {len(data)} bytes")
    try:
        found = msgspec.json.decode(data, type=_Description)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise FormatError("the sealed description is malformed") from None
    if (found.version, found.suite) != (_VERSION, SUITE):
        raise UnsupportedError(
            f"the image is sealed with version {found.version} of the suite {found.suite[:40]!r}",
            hint=f"this reader knows {SUITE} only, and takes no other",
        )
    blobs = tuple(_blob(entry) for entry in found.blobs)
    if len({blob.blob_id for blob in blobs}) != len(blobs):
        raise FormatError("the sealed description has one blob twice")
    return blobs


def _blob(entry: _Entry) -> SealedBlob:
    blob_id, root = bytes.fromhex(entry.id), bytes.fromhex(entry.root)
    if len(blob_id) != BLOB_ID_BYTES or len(root) != HASH_BYTES:
        raise FormatError("the sealed description has an id or root of the wrong length")
    try:
        key = BlobKey(base64.b64decode(entry.key.encode("ascii"), validate=True))
    except (binascii.Error, ValueError):
        raise FormatError("the sealed description has a key that is no base64") from None
    return SealedBlob(
        blob_id=blob_id,
        key=key,
        piece_count=entry.pieces,
        size_bytes=entry.size,
        root=root,
        padding=entry.padding,
    )
