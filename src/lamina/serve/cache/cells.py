"""How a blob is cut for the cache, and what of it can be proven without a key.

A *cell* is what is fetched, proven, kept and evicted at once.  Of a sealed blob it is a sealed
piece, which its leaf proves; a small blob is one cell, which its digest proves; any other is cut
into blocks, of which nothing is proven until all are here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from lamina.errors import IntegrityError, NotFoundError
from lamina.registry.verify import has_digest

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lamina.blob.leaf_table import LeafTable

BLOCK_BYTES: Final = 64 << 10
WHOLE_BYTES: Final = 1 << 20
"""Blobs up to this size are one cell: metadata mostly, which are read whole."""
MOST_BYTES: Final = 64 << 30
"""Of a blob that is cut into blocks, of which so many can be kept note of."""

_PAGE_BYTES: Final = 4096
_ZONE_BYTES: Final = 1 << 20


class Cells(Protocol):
    """The cells of one blob, in order and without gaps."""

    size_bytes: int
    count: int
    identity: bytes
    """All that decides what is accepted for a cell: cells of another identity are kept apart."""
    is_proving: bool
    """Whether :meth:`check` proves anything."""

    def extent(self, index: int) -> tuple[int, int]:
        """(offset, length) of a cell in the blob."""

    def find(self, offset: int) -> int:
        """Return the cell that a byte of the blob is in."""

    def check(self, index: int, data: Buffer) -> None:
        """Raise IntegrityError for bytes that are not those of the cell."""


class Blocks(Cells):
    """Cells of one length, but for the last: nothing is proven."""

    is_proving = False

    def __init__(self, size_bytes: int, registry: str) -> None:
        """Make cells of what *registry* sends, which counts for those only who ask there."""
        self.size_bytes = size_bytes
        self.count = -(-size_bytes // BLOCK_BYTES)
        self.identity = b"stored blocks %d %s" % (size_bytes, registry.encode())

    def extent(self, index: int) -> tuple[int, int]:
        """(offset, length) of a cell in the blob."""
        start = index * BLOCK_BYTES
        return start, min(BLOCK_BYTES, self.size_bytes - start)

    def find(self, offset: int) -> int:
        """Return the cell that a byte of the blob is in."""
        return offset // BLOCK_BYTES

    def check(self, index: int, data: Buffer) -> None:
        """Accept anything."""


class OneCell(Cells):
    """A whole blob, proven by its digest."""

    is_proving = True

    def __init__(self, digest: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.count = 1
        self.identity = b"stored blob %d" % size_bytes
        self._digest = digest

    def extent(self, index: int) -> tuple[int, int]:  # noqa: ARG002
        """(offset, length) of a cell in the blob."""
        return 0, self.size_bytes

    def find(self, offset: int) -> int:  # noqa: ARG002
        """Return the cell that a byte of the blob is in."""
        return 0

    def check(self, index: int, data: Buffer) -> None:  # noqa: ARG002
        """Raise IntegrityError for bytes with another digest."""
        if not has_digest(data, self._digest):
            raise IntegrityError(f"the registry sends other bytes than those of {self._digest}")


class SealedPieces(Cells):
    """The pieces of a sealed blob, proven by the leaf table that its manifest names."""

    is_proving = True

    def __init__(self, table: LeafTable, root: bytes) -> None:
        self.size_bytes = table.size_bytes
        self.count = table.piece_count
        self.identity = b"sealed pieces" + root
        self._table = table

    def extent(self, index: int) -> tuple[int, int]:
        """(offset, length) of a cell in the blob."""
        return self._table.extent(index)

    def find(self, offset: int) -> int:
        """Return the cell that a byte of the blob is in."""
        starts = range(self.count)
        return bisect_right(starts, offset, key=lambda index: self._table.extent(index)[0]) - 1

    def check(self, index: int, data: Buffer) -> None:
        """Raise IntegrityError for bytes with another leaf."""
        self._table.check(index, data)


def cells_without_proof(digest: str, size_bytes: int, registry: str) -> Cells:
    """Return the cells of a blob of which only the digest is known, and what a registry says of
    its size.

    Raises NotFoundError for one that is not kept here.
    """
    if 0 < size_bytes <= WHOLE_BYTES:
        return OneCell(digest, size_bytes)
    if size_bytes > MOST_BYTES:
        raise NotFoundError(f"this cache keeps no blob of {size_bytes} bytes")
    return Blocks(size_bytes, registry)


class Placing:
    """Where cells are in the cache file: in zones, each of which begins with a page of its own, so
    that one can be evicted and its neighbours stay.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._firsts, self._begins = array("Q"), array("Q")
        for first, begin in _zones(cells):
            self._firsts.append(first)
            self._begins.append(begin)
        last = cells.extent(cells.count - 1) if cells.count else (0, 0)
        self.file_bytes = self.place(cells.count - 1) + last[1] if cells.count else 0

    @property
    def zones(self) -> list[tuple[int, int]]:
        """(first cell, first byte in the cache file) of each zone."""
        return list(zip(self._firsts, self._begins, strict=True)) or [(0, 0)]

    def place(self, index: int) -> int:
        """Return where a cell begins in the cache file."""
        zone = bisect_right(self._firsts, index) - 1
        first, begin = self._firsts[zone], self._begins[zone]
        return begin + self._cells.extent(index)[0] - self._cells.extent(first)[0]


def _zones(cells: Cells) -> Iterator[tuple[int, int]]:
    index, begin = 0, 0
    while index < cells.count:
        yield index, begin
        start, _ = cells.extent(index)
        following = max(index + 1, _first_from(cells, start + _ZONE_BYTES))
        end = cells.extent(following)[0] if following < cells.count else cells.size_bytes
        begin += -(-(end - start) // _PAGE_BYTES) * _PAGE_BYTES
        index = following


def _first_from(cells: Cells, offset: int) -> int:
    """Return the first cell that begins at *offset* or after it."""
    if offset >= cells.size_bytes:
        return cells.count
    index = cells.find(offset)
    return index if cells.extent(index)[0] == offset else index + 1
