"""Sealing in a conversion: a key and id for every blob, and what becomes of its packed pieces.

The keys are made before the workers are forked, who inherit them; so no key ever passes a pipe.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lamina.blob.builder import BlobColumns, encode_table
from lamina.blob.ci_header import entry_of
from lamina.blob.framing import BlobOptions, FinishedBlob, Sha256
from lamina.blob.leaf_table import encode_leaf_table
from lamina.blob.merkle import HASH_BYTES, leaf_hash, root_of
from lamina.blob.seal import COMPRESSED, BlobKey, Padding, PieceSeal, new_blob_id
from lamina.blob.seal_class import PublicPieces, SealClass, TenantKey, TenantSeal
from lamina.blob.sealed_description import SealedBlob
from lamina.erofs.layout import BlobFeature, round_up
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.trust.encryption.recipients import Recipients


@dataclass(frozen=True, slots=True)
class SealOptions:
    """Who may open the image, and how the lengths of its pieces are hidden.

    With a ``tenant`` key, pieces look as those of other images of the tenant do; the layers
    ``public``, counted from 0 or from the end, stay readable for everybody.
    """

    recipients: Recipients
    padding: Padding = Padding.NONE
    tenant: TenantKey | None = None
    public: tuple[int, ...] = ()

    def blob_seals(self, count: int) -> list[BlobSeal]:
        """Return a seal for each of ``count`` layers.

        Raises:
            UsageError: a layer that is named is not there.
        """
        public = set()
        for number in self.public:
            if not -count <= number < count:
                raise UsageError(f"there is no layer {number}: the image has {count}")
            public.add(number % count)
        return [
            BlobSeal(Padding.NONE, is_public=True)
            if number in public
            else BlobSeal(self.padding, tenant=self.tenant)
            for number in range(count)
        ]


@dataclass(frozen=True, slots=True)
class BlobSeal:
    """The key and id of the blob of one layer."""

    padding: Padding
    key: BlobKey = field(default_factory=BlobKey.new)
    blob_id: bytes = field(default_factory=new_blob_id)
    tenant: TenantKey | None = None
    is_public: bool = False

    @property
    def seal_class(self) -> SealClass:
        """Return the class of the blob."""
        if self.is_public:
            return SealClass.PUBLIC
        return SealClass.PRIVATE if self.tenant is None else SealClass.TENANT

    def pieces(self) -> PieceSeal | TenantSeal | PublicPieces:
        """Return what seals its pieces; make it once a process."""
        if self.is_public:
            return PublicPieces()
        if self.tenant is not None:
            return TenantSeal(self.tenant, self.padding)
        return PieceSeal(self.key, self.blob_id, self.padding)


class SegmentSeal:
    """Seals the pieces of one segment in their order, and remembers their lengths and leaves."""

    def __init__(self, seal: PieceSeal | TenantSeal | PublicPieces, first_piece: int) -> None:
        self._seal = seal
        self._next = first_piece
        self.stored_sizes = array("I")
        self.leaves = bytearray()
        self.messages = bytearray()
        """Of the tenant class: what the keys of the pieces are made of."""

    def seal(self, data: bytes, raw_size: int) -> bytes:
        """Return the stored form of the next piece, which is compressed if it is not ``raw_size``
        long.
        """
        index = self._next
        self._next += 1
        flags = COMPRESSED if len(data) != raw_size else 0
        if isinstance(self._seal, TenantSeal):
            message = self._seal.message(data, raw_size, flags)
            self.messages += message
            stored = self._seal.seal(data, message)
        elif isinstance(self._seal, PieceSeal):
            stored = self._seal.seal(index, data, raw_size, flags)
        else:
            stored = data
        self.stored_sizes.append(len(stored))
        self.leaves += leaf_hash(index, stored)
        return stored


class SealedPart(NamedTuple):
    """A sealed blob as the metadata layer and the leaf layer tell of it."""

    description: SealedBlob
    leaf_table: bytes


def finish_sealed(
    columns: BlobColumns, sha256: Sha256, size_bytes: int, options: BlobOptions
) -> FinishedBlob:
    """Return a blob of nothing but sealed pieces; ``sha256`` and ``size_bytes`` are of all of them.

    Its chunk table says where the pieces would lie without sealing.
    """
    blob_id = sha256.hexdigest()
    if not columns.chunk_sizes:
        return FinishedBlob((), blob_id, size_bytes, None, b"")
    table = encode_table(columns, BlobFeature.ALIGNED, 0)
    entry = entry_of(
        table.header,
        blob_id=blob_id,
        chunk_size=options.chunk_size,
        compressor=options.compressor,
        digester=options.digester,
        compressed_size=size_bytes,
        uncompressed_size=columns.uncompressed_size,
    )
    padded = table.payload.ljust(round_up(len(table.payload), 4096), b"\0")
    return FinishedBlob((), blob_id, size_bytes, entry, padded + table.header.pack())


def describe_sealed(
    seal: BlobSeal, stored_sizes: array[int], leaves: bytes, messages: bytes
) -> SealedPart:
    """Keys, id and root of a finished blob, and its leaf table."""
    pieces = seal.pieces()
    starts = range(0, len(leaves), HASH_BYTES)
    description = SealedBlob(
        blob_id=seal.blob_id,
        key=seal.key if seal.seal_class is SealClass.PRIVATE else None,
        piece_keys=pieces.keys(messages) if isinstance(pieces, TenantSeal) else None,
        piece_count=len(stored_sizes),
        size_bytes=sum(stored_sizes),
        root=root_of(leaves[start : start + HASH_BYTES] for start in starts),
        padding=seal.padding,
    )
    return SealedPart(description, encode_leaf_table(stored_sizes, leaves))
