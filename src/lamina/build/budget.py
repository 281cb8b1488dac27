"""What may be kept in memory of the entries of one image, and gone through to place them, over all
of its layers.

A few megabytes of compressed headers can describe gigabytes of names and attributes, one layer as
well as a thousand of them.  So what is kept is counted while the headers are read, by all processes
together, and reading ends with an error before there is too much of it.
"""

from __future__ import annotations

import mmap
from typing import Final

from lamina.errors import UnsupportedError

MAX_ENTRIES: Final = 3 << 19
"""Most entries of an image, directories that no entry describes among them: over 1.5 million."""

MAX_TEXT_BYTES: Final = 192 << 20
"""Most bytes of names, link targets and extended attributes of an image, counted as below."""

LONG_TEXT_BYTES: Final = 256
"""What a name and a target have together at most, as a rule."""

DIRECTORY_BYTES: Final = 256
"""What a directory takes more than a file."""

SET_BYTES: Final = 128
ATTRIBUTE_BYTES: Final = 64
"""What a set of extended attributes, and each of them, takes in memory beside its bytes."""

MAX_LINK_PARTS: Final = 1 << 21
"""Most parts of link targets that are gone through to find where entries belong, which takes some
seconds.  A folder of an ordinary layer is looked for once, and its way leads through a few.
"""

PUBLISHED_ENTRIES: Final = 256
PUBLISHED_BYTES: Final = 1 << 16
"""How much may be added until others see it."""


class Budget:
    """The sums of one image, in memory that forked processes share; each share has one writer."""

    def __init__(self, shares: int = 1) -> None:
        self._memory = mmap.mmap(-1, 16 * shares)
        self._view = memoryview(self._memory).cast("Q")

    def share(self, number: int = 0) -> Share:
        """Return what one writer adds to."""
        return Share(self._view, 2 * number)

    def close(self) -> None:
        """Give the memory back; may be called again."""
        self._view.release()
        self._memory.close()


class Share:
    """What one layer, or the merge of all, keeps."""

    def __init__(self, sums: memoryview[int], place: int) -> None:
        self._sums = sums
        self._place = place
        self._entries = self._text_bytes = self._link_parts = 0

    def follow(self, parts: int) -> None:
        """Count the *parts* of a link target that are about to be gone through.

        Raises UnsupportedError if that were too many.
        """
        self._link_parts += parts
        if self._link_parts > MAX_LINK_PARTS:
            raise _too_much(f"{MAX_LINK_PARTS} parts of link targets on the ways to their entries")

    def add(self, entries: int, text_bytes: int) -> None:
        """Count *entries* and the bytes of their names, targets and attributes.

        Raises UnsupportedError if the image has too much of either.
        """
        self._entries += entries
        self._text_bytes += text_bytes
        if self._entries >= PUBLISHED_ENTRIES or self._text_bytes >= PUBLISHED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Let all see what was added.  Raises as :meth:`add`."""
        sums, place = self._sums, self._place
        sums[place] += self._entries
        sums[place + 1] += self._text_bytes
        self._entries = self._text_bytes = 0
        if sum(sums[::2]) > MAX_ENTRIES:
            raise _too_much(f"{MAX_ENTRIES} entries")
        if sum(sums[1::2]) > MAX_TEXT_BYTES:
            raise _too_much(
                f"{MAX_TEXT_BYTES >> 20} MiB of names, link targets and extended attributes"
            )


def _too_much(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"The layers of the image have more than {what} together.",
        hint="No ordinary image has so much; split it if it is yours.",
    )


def text_bytes(path: bytes, link: bytes) -> int:
    """Return what a name and a link target count; long ones are in several places at a time."""
    size = len(path) + len(link)
    return size + 2 * max(0, size - LONG_TEXT_BYTES)


def attributes_bytes(xattrs: dict[bytes, bytes]) -> int:
    """Return what a set of extended attributes counts; its bytes are kept in two forms."""
    text = sum(map(len, xattrs)) + sum(map(len, xattrs.values()))
    return SET_BYTES + ATTRIBUTE_BYTES * len(xattrs) + 2 * text
