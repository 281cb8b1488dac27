"""The chunk table of a sealed blob.

The table itself describes the compressed pieces as if they lay back to back, as they are without
sealing; where their sealed forms lie in the blob, the leaf table says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from lamina.blob.leaf_table import LeafTable
from lamina.blob.seal import COMPRESSED
from lamina.blob.seal_class import PieceOpener
from lamina.blob.table import ChunkTable, Piece
from lamina.erofs.layout import BlobEntry
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SealedTable(ChunkTable):
    """A chunk table whose pieces are where they are stored, and open with a key."""

    _leaves: LeafTable
    _seal: PieceOpener

    @classmethod
    def open_sealed(
        cls, buffer: Buffer, entry: BlobEntry, leaves: LeafTable, seal: PieceOpener
    ) -> Self:
        """As :meth:`from_meta`, of a blob with these leaves, which this seal opens."""
        table = cls.from_meta(buffer, entry)
        if leaves.piece_count != table.piece_count:
            raise FormatError(
                f"the sealed blob {entry.blob_id} has {table.piece_count} pieces, its leaf table "
                f"{leaves.piece_count}"
            )
        table._leaves = leaves
        table._seal = seal
        return table

    def opened(self, piece: Piece, stored: memoryview) -> memoryview:
        """Return the compressed bytes of a stored piece, after its leaf and its tag proved right.

        Raises IntegrityError.
        """
        self._leaves.check(piece.index, stored)
        plain = super()._piece(piece.index, piece.first, piece.count)
        flags = COMPRESSED if plain.compressed else 0
        return memoryview(self._seal.open(piece.index, stored, plain.size, plain.raw_size, flags))

    def _piece(self, index: int, first: int, count: int) -> Piece:
        plain = super()._piece(index, first, count)
        number = self.piece_of(first) if index < 0 else index
        offset, size = self._leaves.extent(number)
        if size != self._seal.stored_size(plain.size):
            raise FormatError(
                f"piece {number} of the sealed blob {self.blob_id} has {size} bytes, not "
                f"{self._seal.stored_size(plain.size)}"
            )
        return plain._replace(index=number, offset=offset, size=size)
