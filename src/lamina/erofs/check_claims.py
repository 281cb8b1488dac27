"""Notes which parts of a bootstrap are taken, so that no two things lie on top of each other."""

from __future__ import annotations

from typing import Final

from lamina.erofs.layout import NID_SHIFT, NID_SIZE
from lamina.errors import FormatError

TAKEN: Final = 0xFF
"""Value of a unit that something covers where no inode begins."""


class Claims:
    """One byte for each unit of 32 bytes, where an inode may begin: 0 while it is free.

    All that a bootstrap has begins at such a unit or shares none with others, so no more has to be
    known.  That also bounds the work of reading it: nothing is read twice for two owners.
    """

    def __init__(self, size_bytes: int) -> None:
        """Take nothing of an image of *size_bytes* yet."""
        self.units = bytearray(-(-size_bytes // NID_SIZE))
        self._size_bytes = size_bytes
        self._named: list[tuple[int, int, str]] = []

    def name(self, start: int, end: int, what: str) -> None:
        """Claim one of the few parts that messages name; at most the last may begin inside a
        unit.
        """
        for other_start, other_end, other in self._named:
            if start < other_end and other_start < end:
                raise FormatError(f"bootstrap: {what} at offset {start} overlaps {other}")
        self._named.append((start, end, what))
        first, last = self._units_of(start, end, what)
        self.units[first:last] = bytes([TAKEN]) * (last - first)

    def claim(self, start: int, end: int, what: str) -> None:
        """Claim the bytes from *start* to *end*.

        Raises:
            FormatError: somebody has them, or they leave the image.
        """
        first, last = self._units_of(start, end, what)
        if self.units.count(0, first, last) != last - first:
            taken = first + next(n for n, unit in enumerate(self.units[first:last]) if unit)
            raise FormatError(f"bootstrap: {what} at offset {start} overlaps {self._owner(taken)}")
        self.units[first:last] = bytes([TAKEN]) * (last - first)

    def _units_of(self, start: int, end: int, what: str) -> tuple[int, int]:
        if end > self._size_bytes:
            raise FormatError(f"bootstrap: {what} at offset {start} leaves the image")
        return start >> NID_SHIFT, (end + NID_SIZE - 1) >> NID_SHIFT

    def _owner(self, unit: int) -> str:
        start = unit << NID_SHIFT
        for named_start, named_end, what in self._named:
            if start < named_end and named_start < start + NID_SIZE:
                return what
        return "something else"
