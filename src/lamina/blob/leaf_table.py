"""The leaf table of a sealed blob: where its pieces lie and what they hash to, in clear.

An entry a piece, in storage order: u32 stored length, big-endian, then the 32-byte leaf of
:mod:`lamina.blob.merkle`.  Whoever has the signed root can check every stored piece with it, and
needs no key: registries, peers and caches.  It tells lengths, which requests tell as well.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from lamina.blob.merkle import HASH_BYTES, check_leaf, check_leaf_table
from lamina.errors import FormatError, IntegrityError

if TYPE_CHECKING:
    from typing_extensions import Buffer

ENTRY: Final = struct.Struct(">I32s")
MAX_LEAF_TABLE_BYTES: Final = 512 << 20


def encode_leaf_table(stored_sizes: Sequence[int], leaves: bytes) -> bytes:
    """Return the table of a blob; *leaves* has 32 bytes a piece."""
    starts = range(0, len(leaves), HASH_BYTES)
    return b"".join(
        [
            ENTRY.pack(size, leaves[start : start + HASH_BYTES])
            for size, start in zip(stored_sizes, starts, strict=True)
        ]
    )


class LeafTable:
    """The decoded leaf table of one blob, the root of which was right."""

    def __init__(self, stored_sizes: Iterable[int], leaves: memoryview, blob_id: str) -> None:
        self.blob_id = blob_id
        self._offsets = array("Q", accumulate(stored_sizes, initial=0))
        self._leaves = leaves

    @classmethod
    def decode(
        cls, data: Buffer, piece_count: int, size_bytes: int, root: bytes, blob_id: str
    ) -> LeafTable:
        """Read the table of a blob of *size_bytes* with this Merkle root.

        Raises FormatError for lengths that contradict each other, IntegrityError for another root.
        """
        view = memoryview(data).cast("B")
        if len(view) != piece_count * ENTRY.size:
            raise FormatError(
                f"the leaf table of the sealed blob {blob_id} has {len(view)} bytes for "
                f"{piece_count} pieces"
            )
        entries = list(ENTRY.iter_unpack(view))
        leaves = b"".join([leaf for _, leaf in entries])
        table = cls(
            (size for size, _ in entries),
            check_leaf_table(leaves, piece_count, root, blob_id),
            blob_id,
        )
        if table.size_bytes != size_bytes:
            raise IntegrityError(
                f"the sealed blob {blob_id} has {size_bytes} bytes, but its pieces "
                f"{table.size_bytes}",
                hint="it was cut or extended after it was sealed",
            )
        return table

    @property
    def piece_count(self) -> int:
        """Number of pieces."""
        return len(self._offsets) - 1

    @property
    def size_bytes(self) -> int:
        """Length of the blob."""
        return self._offsets[-1]

    def extent(self, index: int) -> tuple[int, int]:
        """(offset, length) of a stored piece in the blob."""
        start = self._offsets[index]
        return start, self._offsets[index + 1] - start

    def check(self, index: int, stored: Buffer) -> None:
        """Raise IntegrityError unless a stored piece is the one of this place."""
        start = index * HASH_BYTES
        check_leaf(index, stored, bytes(self._leaves[start : start + HASH_BYTES]), self.blob_id)
