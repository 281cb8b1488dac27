"""Prove pages of a chunk by the digest of the whole chunk.

The digest of a chunk is BLAKE3, a tree over leaves of 1 KiB.  A page of 4 KiB is a subtree, so some
pages of a chunk are proven by its digest and the values of the largest subtrees that have none of
them: *siblings*, 32 bytes each, in the order in which a walk from the root, left before right,
meets them.  Neighbouring pages share them, and a chunk whose pages are all there needs none.

Proving takes numpy (the extra ``lamina[start]``), except for chunks with all their pages.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from lamina.codec.digest import Digester, digest
from lamina.errors import UnsupportedError

if TYPE_CHECKING:
    from lamina.codec.blake3_tree import Words

PAGE_BYTES: Final = 4096
SIBLING_BYTES: Final = 32

_LEAF_BYTES: Final = 1024
_LEAVES_PER_PAGE: Final = PAGE_BYTES // _LEAF_BYTES


class ChunkPages(NamedTuple):
    """Some pages of one chunk, and what proves them.

    ``size_bytes`` is that of the chunk; ``pages`` are numbers of pages in it, at least one,
    ascending; ``data`` has these pages, 4096 bytes each, the last of the chunk padded by zeros;
    ``siblings`` has :func:`sibling_count` times 32 bytes.
    """

    digest: bytes
    size_bytes: int
    pages: Sequence[int]
    data: memoryview
    siblings: memoryview

    @property
    def is_whole(self) -> bool:
        """Whether all pages of the chunk are there."""
        return len(self.pages) == page_count(self.size_bytes)


def page_count(size_bytes: int) -> int:
    """Return how many pages a chunk has."""
    return -(-size_bytes // PAGE_BYTES)


def require_numpy() -> None:
    """Raise UnsupportedError, which names the extra, unless single pages can be proven here."""
    try:
        import lamina.codec.blake3_tree  # noqa: F401 - whether it can be imported
    except ImportError as error:
        raise UnsupportedError(
            "pages of an image cannot be proven without numpy",
            hint="pip install 'lamina[start]'",
        ) from error


def sibling_count(size_bytes: int, pages: Sequence[int]) -> int:
    """Return how many siblings prove these pages of a chunk of *size_bytes*."""
    places = _SiblingPlaces()
    _walk(page_count(size_bytes), pages, places)
    return len(places.found)


def make_siblings(chunks: Sequence[tuple[memoryview, Sequence[int]]]) -> list[bytes]:
    """Return for each (whole content of a chunk, some of its pages) what proves these pages.

    Raises UnsupportedError without numpy, unless all pages of each are wanted.
    """
    forest = _Forest()
    wanted = []
    for chunk, pages in chunks:
        count = page_count(len(chunk))
        places = _SiblingPlaces()
        _walk(count, pages, places)
        if places.found:
            padded = memoryview(bytes(chunk).ljust(count * PAGE_BYTES, b"\0"))
            forest.add(ChunkPages(b"", len(chunk), range(count), padded, memoryview(b"")))
        wanted.append([forest.subtrees[place] for place in places.found])
    if not any(wanted):
        return [b""] * len(wanted)
    require_numpy()
    values = forest.values()
    return [b"".join(value_bytes(values, row) for row in rows) for rows in wanted]


def prove(chunks: Sequence[ChunkPages]) -> list[bool]:
    """Return for each chunk whether its pages are what its digest says.

    Raises UnsupportedError without numpy if one of them is not whole.
    """
    proven = [_is_sound(chunk) for chunk in chunks]
    roots: dict[int, int] = {}
    forest = _Forest()
    for number, chunk in enumerate(chunks):
        if not proven[number]:
            continue
        if chunk.is_whole:
            found = digest(Digester.BLAKE3, chunk.data[: chunk.size_bytes])
            proven[number] = found == chunk.digest
        else:
            roots[number] = forest.add(chunk)
    if roots:
        require_numpy()
        values = forest.values()
        for number, row in roots.items():
            proven[number] = value_bytes(values, row) == chunks[number].digest
    return proven


def value_bytes(values: Words, row: int) -> bytes:
    """Return one value as it is written."""
    return bytes(values[row].astype("<u4").data)


def _is_sound(chunk: ChunkPages) -> bool:
    """Return whether numbers and lengths fit; and what is behind the end of the chunk is zeros, as
    it is not in the digest but is read with the last page.
    """
    count, pages = page_count(chunk.size_bytes), chunk.pages
    if not pages or not 0 <= pages[0] <= pages[-1] < count:
        return False
    if any(after <= before for before, after in pairwise(pages)):
        return False
    if len(chunk.data) != len(pages) * PAGE_BYTES:
        return False
    if len(chunk.siblings) != SIBLING_BYTES * sibling_count(chunk.size_bytes, pages):
        return False
    padding = count * PAGE_BYTES - chunk.size_bytes if pages[-1] == count - 1 else 0
    return not padding or bytes(chunk.data[-padding:]) == bytes(padding)


class _Visitor(Protocol):
    """What a walk over the tree of a chunk meets; each returns a row for its parent."""

    def page(self, place: int) -> int:
        """Take a page that is there, by its place among these."""

    def sibling(self, first: int, size: int) -> int:
        """Take a subtree of *size* pages that has none of them."""

    def parent(self, first: int, size: int, left: int, right: int) -> int:
        """Take one that has some, over two rows."""


def _walk(count: int, pages: Sequence[int], visitor: _Visitor) -> int:
    """Walk the tree over *count* pages of which *pages* are there; returns the root's row."""

    def below(first: int, size: int, start: int, stop: int) -> int:
        if start == stop:
            return visitor.sibling(first, size)
        if size == 1:
            return visitor.page(start)
        # The left side is the largest power of two that leaves something for the right.
        half = 1 << (size - 1).bit_length() - 1
        middle = bisect_left(pages, first + half, start, stop)
        left = below(first, half, start, middle)
        right = below(first + half, size - half, middle, stop)
        return visitor.parent(first, size, left, right)

    return below(0, count, 0, len(pages))


class _SiblingPlaces:
    """Notes where the siblings of some pages are."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []

    def page(self, place: int) -> int:
        return place

    def sibling(self, first: int, size: int) -> int:
        self.found.append((first, size))
        return 0

    def parent(self, first: int, size: int, left: int, right: int) -> int:
        return first + size + left + right


class _Parent(NamedTuple):
    """A value that is made of two others, by row."""

    row: int
    left: int
    right: int
    is_root: bool


class _Forest:
    """The trees of some chunks.  Each value has a row; those of the same height are computed at
    once, over all chunks.
    """

    def __init__(self) -> None:
        self.subtrees: dict[tuple[int, int], int] = {}
        """Rows by (first page, pages), of the chunk that was added last."""
        self._heights: list[int] = []
        self._given = bytearray()
        self._given_rows: list[int] = []
        self._full = bytearray()
        self._full_rows: list[int] = []
        self._full_pages: list[int] = []
        self._leaves = bytearray()
        self._leaf_rows: list[tuple[int, int, int]] = []
        self._parents: list[list[_Parent]] = []
        self._chunk = ChunkPages(b"", 0, (), memoryview(b""), memoryview(b""))
        self._used = 0

    def add(self, chunk: ChunkPages) -> int:
        """Return the row of the digest of a chunk, which is sound."""
        self._chunk, self._used, self.subtrees = chunk, 0, {}
        return _walk(page_count(chunk.size_bytes), chunk.pages, self)

    def page(self, place: int) -> int:
        """Take a page that is there."""
        chunk = self._chunk
        number = chunk.pages[place]
        data = chunk.data[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
        size = chunk.size_bytes - number * PAGE_BYTES
        if size < PAGE_BYTES:
            row = self._short_page(number, data, size)
        else:
            row = self._new_row(0)
            self._full += data
            self._full_rows.append(row)
            self._full_pages.append(number)
        self.subtrees[number, 1] = row
        return row

    def _short_page(self, number: int, data: memoryview, size: int) -> int:
        """Return the leaves of the last page: that of a chunk has fewer leaves, and the last of
        these fewer bytes.
        """
        rows = []
        for leaf in range(-(-size // _LEAF_BYTES)):
            row = self._new_row(0)
            self._leaves += data[leaf * _LEAF_BYTES : (leaf + 1) * _LEAF_BYTES]
            left = min(size - leaf * _LEAF_BYTES, _LEAF_BYTES)
            self._leaf_rows.append((row, number * _LEAVES_PER_PAGE + leaf, left))
            rows.append(row)
        # The left side of two to four leaves is two, or one of two.
        while len(rows) > 1:
            last = [self._join(*rows[2:4])] if len(rows) == 4 else rows[2:]
            rows = [self._join(*rows[:2]), *last]
        return rows[0]

    def sibling(self, _first: int, _size: int) -> int:
        """Add a value that is given."""
        row = self._new_row(0)
        start = self._used * SIBLING_BYTES
        self._given += self._chunk.siblings[start : start + SIBLING_BYTES]
        self._given_rows.append(row)
        self._used += 1
        return row

    def parent(self, first: int, size: int, left: int, right: int) -> int:
        """Add a value to be computed."""
        row = self._join(left, right, is_root=size == page_count(self._chunk.size_bytes))
        self.subtrees[first, size] = row
        return row

    def _join(self, left: int, right: int, *, is_root: bool = False) -> int:
        height = 1 + max(self._heights[left], self._heights[right])
        row = self._new_row(height)
        while len(self._parents) < height:
            self._parents.append([])
        self._parents[height - 1].append(_Parent(row, left, right, is_root))
        return row

    def _new_row(self, height: int) -> int:
        self._heights.append(height)
        return len(self._heights) - 1

    def values(self) -> Words:
        """Compute them all, (rows, 8)."""
        import numpy as np

        from lamina.codec.blake3_tree import leaf_values, parent_values

        def words(data: bytearray, columns: int) -> Words:
            return np.frombuffer(data, "<u4").reshape(-1, columns).astype(np.uint32, copy=False)

        values = np.empty((len(self._heights), 8), np.uint32)
        values[self._given_rows] = words(self._given, 8)
        leaves_of_full = [
            page * _LEAVES_PER_PAGE + leaf
            for page in self._full_pages
            for leaf in range(_LEAVES_PER_PAGE)
        ]
        level = leaf_values(
            words(self._full, _LEAF_BYTES // 4), np.array(leaves_of_full, np.uint32)
        )
        while len(level) > len(self._full_rows):
            level = parent_values(level[0::2], level[1::2])
        values[self._full_rows] = level
        if self._leaf_rows:
            rows, leaves, sizes = np.array(self._leaf_rows, np.uint32).T
            values[rows] = leaf_values(words(self._leaves, _LEAF_BYTES // 4), leaves, sizes)
        for parents in self._parents:
            made, left, right, is_root = np.array(parents, np.intp).T
            values[made] = parent_values(values[left], values[right], is_root.astype(bool))
        return values
