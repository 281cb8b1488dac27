"""What may be kept in memory of the entries of one image, and gone through to place them, over all
of its layers.

A few megabytes of compressed headers can describe gigabytes of names and attributes, one layer as
well as a thousand of them.  So what is kept is counted while the headers are read, by all processes
together, and reading ends with an error before there is too much of it.
"""

from __future__ import annotations

import mmap
from typing import Final

from lamina.errors import FormatError, UnsupportedError

MAX_ENTRIES: Final = 5 << 18
"""Most entries of an image, directories that no entry describes among them: a million files and the
folders that they are in, by seven or ten as those of Node packages.
"""

MAX_TEXT_BYTES: Final = 192 << 20
"""Most bytes that names, link targets and extended attributes take, counted as below."""

MAX_MEMORY_BYTES: Final = 740_000_000
"""Most bytes that entries, texts and chunks take together.  With what does not depend on the image,
all processes of a conversion or indexing stay below 800 MiB.
"""

# What each takes when there is most of it: in the trees, in a bootstrap on its way from one process
# to the other, and in the tables of chunks.  Measured with a million of each (docs/performance.md).
ENTRY_BYTES: Final = 190
DIRECTORY_BYTES: Final = 1150
"""What a directory takes more than a file."""
CHUNK_BYTES: Final = 220
KNOWN_CHUNK_BYTES: Final = 48
"""A chunk that an earlier file has as well."""
SET_BYTES: Final = 128
ATTRIBUTE_BYTES: Final = 190
"""A set of extended attributes, and each of them, beside its bytes; equal sets are kept once."""
INODE_ATTRIBUTE_BYTES: Final = 8
"""What an attribute takes in an inode at most, beside its bytes."""

MAX_LINK_PARTS: Final = 1 << 21
"""Most parts of link targets that are gone through to find where entries belong, which takes some
seconds.  A folder of an ordinary layer is looked for once, and its way leads through a few.
"""

PUBLISHED_ENTRIES: Final = 256
PUBLISHED_BYTES: Final = 1 << 16
"""How much may be added until others see it."""

PUBLISHED_CHUNKS: Final = 1 << 12

MAX_CHUNKS: Final = 1 << 24
"""Of a layer, in a blob and in lower ones."""

SUMS: Final = 3
"""Of a share: entries, bytes of texts, bytes of directories and chunks."""


class Budget:
    """The sums of one image, in memory that forked processes share; each share has one writer."""

    def __init__(self, shares: int = 1) -> None:
        self._memory = mmap.mmap(-1, 8 * SUMS * shares)
        self._view = memoryview(self._memory).cast("Q")

    def share(self, number: int = 0) -> Share:
        """Return what one writer adds to."""
        return Share(self._view, SUMS * number)

    def close(self) -> None:
        """Give the memory back; may be called again."""
        self._view.release()
        self._memory.close()


class Share:
    """What one layer, or the merge of all, keeps."""

    def __init__(self, sums: memoryview[int], place: int) -> None:
        self._sums = sums
        self._place = place
        self._entries = self._text_bytes = self._other_bytes = self._link_parts = 0

    def follow(self, parts: int) -> None:
        """Count the *parts* of a link target that are about to be gone through.

        Raises UnsupportedError if that were too many.
        """
        self._link_parts += parts
        if self._link_parts > MAX_LINK_PARTS:
            raise _too_much(f"{MAX_LINK_PARTS} parts of link targets on the ways to their entries")

    def add(self, entries: int, text_bytes: int, directories: int = 0) -> None:
        """Count *entries*, the *directories* among them, and what their names, targets and
        attributes take.

        Raises UnsupportedError if the image has too much of either.
        """
        self._entries += entries
        self._text_bytes += text_bytes
        self._other_bytes += DIRECTORY_BYTES * directories
        if self._entries >= PUBLISHED_ENTRIES or self._text_bytes >= PUBLISHED_BYTES:
            self.flush()

    def add_chunks(self, new: int, known: int = 0) -> None:
        """Count chunks, at once; raises UnsupportedError if the image has too many."""
        self._other_bytes += CHUNK_BYTES * new + KNOWN_CHUNK_BYTES * known
        self.flush()

    def flush(self) -> None:
        """Let all see what was added.  Raises as :meth:`add`."""
        sums, place = self._sums, self._place
        sums[place] += self._entries
        sums[place + 1] += self._text_bytes
        sums[place + 2] += self._other_bytes
        self._entries = self._text_bytes = self._other_bytes = 0
        entries, text_bytes, other_bytes = (sum(sums[column::SUMS]) for column in range(SUMS))
        if entries > MAX_ENTRIES:
            raise _too_much(f"{MAX_ENTRIES} entries")
        if text_bytes > MAX_TEXT_BYTES:
            raise _too_much(
                f"{MAX_TEXT_BYTES >> 20} MiB of names, link targets and extended attributes"
            )
        if ENTRY_BYTES * entries + text_bytes + other_bytes > MAX_MEMORY_BYTES:
            raise UnsupportedError(
                f"the layers of the image have more entries, names and chunks together than "
                f"{MAX_MEMORY_BYTES // 1_000_000} MB of memory hold",
                hint="larger chunks take less of it, if most of it is chunks",
            )


class ChunkCounter:
    """Counts the chunks of a layer in its share, some at a time."""

    def __init__(self, share: Share, chunk_size: int) -> None:
        self.due = 0
        """With how many chunks :meth:`count` is to be called again."""
        self._share = share
        self._chunk_size = chunk_size
        self._new = self._known = 0

    def count(self, total: int, known: int = 0) -> None:
        """Count chunks, so many in all, of which some were *known*.

        Raises FormatError if the layer has too many, UnsupportedError if the image has.
        """
        if total >= MAX_CHUNKS:
            raise FormatError(
                f"the layer has {MAX_CHUNKS} or more chunks of {self._chunk_size} bytes",
                hint="choose a larger chunk size",
            )
        new = total - known
        self._share.add_chunks(new - self._new, known - self._known)
        self._new, self._known = new, known
        self.due = total + PUBLISHED_CHUNKS


def _too_much(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the layers of the image have more than {what} together",
        hint="no ordinary image has so much; split it if it is yours",
    )


def text_bytes(path: bytes, link: bytes) -> int:
    """Return what a path and a link target count: the name and the target are in the tree and in
    bootstraps, and while an index is made the whole path is kept as well.
    """
    return 5 * len(path) - 4 * (path.rfind(b"/") + 1) + 4 * len(link)


def attributes_bytes(xattrs: dict[bytes, bytes], *, is_new: bool = True) -> int:
    """Return what extended attributes of one entry count; if the set is not new, in inodes alone,
    each of which has its own copy.
    """
    text = sum(map(len, xattrs)) + sum(map(len, xattrs.values()))
    inode = 2 * (INODE_ATTRIBUTE_BYTES * (1 + len(xattrs)) + text)
    return inode + (SET_BYTES + ATTRIBUTE_BYTES * len(xattrs) + 2 * text if is_new else 0)
