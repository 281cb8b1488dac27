"""What the encrypted metadata layer of a sealed image says of its data blobs: keys and roots.

A JSON file, ``image/image.sealed``, that is only ever written into a layer that is encrypted: it
has the keys in it.  Unknown fields are refused, so that a reader never leaves out what it does not
know.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from lamina.blob.merkle import HASH_BYTES
from lamina.blob.seal import BLOB_ID_BYTES, SUITE, BlobKey, Padding, PieceSeal
from lamina.blob.seal_class import PieceKeys, PieceOpener, PublicPieces, SealClass, TenantPieces
from lamina.errors import FormatError, UnsupportedError

FILE_NAME: Final = "image/image.sealed"
CONFIG_NAME: Final = "image/config.json"
"""The image configuration, which is not for everybody either."""
MAX_DESCRIPTION_BYTES: Final = 64 << 20
_VERSION: Final = 1
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{2}){1,64}\Z")]


class SealedBlob(msgspec.Struct, frozen=True, kw_only=True):
    """One data blob: its random id, number of pieces, ciphertext size, Merkle root; and the key of
    a private one, or the keys of the pieces of one of the tenant class.
    """

    blob_id: bytes
    piece_count: int
    size_bytes: int
    root: bytes
    key: BlobKey | None = None
    piece_keys: PieceKeys | None = None
    padding: Padding = Padding.NONE

    @property
    def seal_class(self) -> SealClass:
        """The class, which follows from the keys that it has."""
        if self.key is not None:
            return SealClass.PRIVATE
        return SealClass.PUBLIC if self.piece_keys is None else SealClass.TENANT

    def opener(self) -> PieceOpener:
        """Return what opens its pieces."""
        if self.key is not None:
            return PieceSeal(self.key, self.blob_id, self.padding)
        if self.piece_keys is not None:
            return TenantPieces(self.piece_keys, self.padding)
        return PublicPieces()


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    id: _Hex
    class_: SealClass = msgspec.field(name="class", default=SealClass.PRIVATE)
    key: str = ""
    keys: str = ""
    pieces: _Count
    size: _Size
    root: _Hex
    padding: Padding


class _Description(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: int
    suite: str
    blobs: tuple[_Entry, ...]


def encode_description(blobs: Sequence[SealedBlob]) -> bytes:
    """Return the JSON text, with the keys in it: encrypt it."""
    entries = tuple(
        _Entry(
            id=blob.blob_id.hex(),
            class_=blob.seal_class,
            key=_encoded(blob.key),
            keys=_encoded(blob.piece_keys),
            pieces=blob.piece_count,
            size=blob.size_bytes,
            root=blob.root.hex(),
            padding=blob.padding,
        )
        for blob in blobs
    )
    return msgspec.json.encode(_Description(version=_VERSION, suite=SUITE, blobs=entries))


def decode_description(data: bytes) -> tuple[SealedBlob, ...]:
    """Parse the description of a sealed image: its blobs, in their order.

    Raises FormatError, which never quotes the text; UnsupportedError for another suite.
    """
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


def _encoded(key: BlobKey | PieceKeys | None) -> str:
    return "" if key is None else base64.b64encode(key.reveal()).decode("ascii")


def _blob(entry: _Entry) -> SealedBlob:
    blob_id, root = bytes.fromhex(entry.id), bytes.fromhex(entry.root)
    if len(blob_id) != BLOB_ID_BYTES or len(root) != HASH_BYTES:
        raise FormatError("the sealed description has an id or root of the wrong length")
    wanted = (entry.class_ is SealClass.PRIVATE, entry.class_ is SealClass.TENANT)
    if (entry.key != "", entry.keys != "") != wanted:
        raise FormatError(f"the sealed description has no keys for the class {entry.class_.value}")
    try:
        key = BlobKey(_decoded(entry.key)) if entry.key else None
        keys = PieceKeys(_decoded(entry.keys)) if entry.keys else None
    except ValueError:
        raise FormatError("the sealed description has a key that is no base64") from None
    if keys is not None and len(keys) != entry.pieces:
        raise FormatError(f"the sealed description has {len(keys)} keys for {entry.pieces} pieces")
    return SealedBlob(
        blob_id=blob_id,
        key=key,
        piece_keys=keys,
        piece_count=entry.pieces,
        size_bytes=entry.size,
        root=root,
        padding=entry.padding,
    )


def _decoded(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii"), validate=True)
