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
    _packed_sizes: dict[int, int]

    @classmethod
    def open_sealed(
        cls, buffer: Buffer, entry: BlobEntry, leaves: LeafTable, seal: PieceOpener
    ) -> Self:
        """Do as :meth:`from_meta` for a blob with these leaves, which this seal opens."""
        table = cls.from_meta(buffer, entry)
        if leaves.piece_count != table.piece_count:
            raise FormatError(
                f"the sealed blob {entry.blob_id} has {table.piece_count} pieces, its leaf table "
                f"{leaves.piece_count}"
            )
        table._leaves = leaves
        table._seal = seal
        table._packed_sizes = {}
        return table

    def opened(self, piece: Piece, stored: memoryview) -> memoryview:
        """Return the compressed bytes of a stored piece, after its leaf and its tag proved right.

        The piece must be one of this table.  Raises IntegrityError.
        """
        self._leaves.check(piece.index, stored)
        flags = COMPRESSED if piece.compressed else 0
        size = self._packed_sizes[piece.index]
        return memoryview(self._seal.open(piece.index, stored, size, piece.raw_size, flags))

    def piece_holding(self, chunk: int) -> Piece:
        """Return the piece that holds a chunk; all are counted for that, as their leaves are."""
        return self.piece(self.piece_of(chunk))

    def _piece(self, number: int, first: int, count: int) -> Piece:
        plain = super()._piece(number, first, count)
        self._packed_sizes[number] = plain.size
        offset, size = self._leaves.extent(number)
        if size != self._seal.stored_size(plain.size):
            raise FormatError(
                f"piece {number} of the sealed blob {self.blob_id} has {size} bytes, not "
                f"{self._seal.stored_size(plain.size)}"
            )
        return Piece(number, offset, size, *plain[3:])
