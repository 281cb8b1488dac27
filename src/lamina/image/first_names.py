"""Which name of an inode came first in a walk: what makes hard links of the others."""

from __future__ import annotations

from typing import Final

from lamina.errors import FormatError
from lamina.image.base import Stat, shown

MAX_BYTES: Final = 256 << 20
NAME_BYTES: Final = 200
"""What a name takes in memory beside its own bytes, about."""


class FirstNames:
    """The first names of the inodes that have more, for as long as these are to come."""

    def __init__(self) -> None:
        self._names: dict[int, bytes] = {}
        self._left: dict[int, int] = {}
        self._bytes = 0

    def of(self, status: Stat) -> bytes:
        """Return the path that an inode, which is no directory, was met by first.

        Raises FormatError if that is too much to remember: no image needs 256 MiB of it.
        """
        if status.nlink <= 1:
            return status.path
        number = status.ino
        first = self._names.get(number)
        if first is None:
            self._add(status)
            return status.path
        self._left[number] -= 1
        if not self._left[number]:
            del self._names[number], self._left[number]
            self._bytes -= len(first) + NAME_BYTES
        return first

    def _add(self, status: Stat) -> None:
        self._names[status.ino] = status.path
        self._left[status.ino] = status.nlink - 1
        self._bytes += len(status.path) + NAME_BYTES
        if self._bytes > MAX_BYTES:
            raise FormatError(
                f"the image has more hard links than can be remembered, at {shown(status.path)}"
            )
