"""A bootstrap of which some pages came ahead, each of them proven, and the rest comes when needed.

To whoever reads it this is a bootstrap like any other: what is not here is waited for, and comes
with all of the rest, after the whole was checked.  Until then no byte that was not proven is looked
at.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from lamina.erofs.layout import (
    BLOB_ENTRY,
    CHUNK_ENTRY,
    CHUNK_INDEX,
    DEVICE_SLOT_OFFSET,
    DEVICE_SLOT_SIZE,
    INODE_COMPACT,
    INODE_EXTENDED,
    NID_SHIFT,
    ChunkEntry,
    Inode,
)
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lamina.erofs.chunk_digests import ChunkDigests, ChunkEntries

PAGE_BYTES: Final = 4096


class NotHereError(LookupError):
    """Pages are wanted that did not come, and nobody was told yet how to get the others."""


class WatchedBootstrap(Bootstrap):
    """A bootstrap that tells what is about to be read of it."""

    def __init__(self, buffer: Buffer, need: Callable[[int, int], None]) -> None:
        """*need* is called with (offset, size) before anything but the fixed part is read, and for
        that afterwards.
        """
        self._need = need
        super().__init__(buffer)
        for start, size_bytes in fixed_parts(self):
            need(start, size_bytes)

    def inode(self, nid: int) -> Inode:
        """Return an inode."""
        offset = self._meta_offset + (nid << NID_SHIFT)
        if nid >= 0 and offset + INODE_COMPACT.size <= self.size_bytes:
            self._need(offset, INODE_COMPACT.size)
            if self._view[offset] & 1:
                self._need(offset, min(INODE_EXTENDED.size, self.size_bytes - offset))
        return super().inode(nid)

    def data_extent(self, inode: Inode, start: int, size: int) -> tuple[int, int]:
        """Return (offset, size) of one block, or less, of a directory or symlink."""
        found = super().data_extent(inode, start, size)
        self._need(*found)
        return found

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return full name -> value of the extended attributes."""
        self._need(inode.offset + inode.inode_size, inode.xattr_size)
        return super().xattrs(inode)

    def chunk_array(self, inode: Inode) -> memoryview:
        """Return the raw chunk indexes of a regular file."""
        found = super().chunk_array(inode)
        self._need(array_start(inode), len(found))
        # What came only now is in another buffer.
        return super().chunk_array(inode)

    def chunk_entry(self, blob_index: int, chunk: int) -> ChunkEntry | None:
        """Return the entry of a chunk if it is where images of Lamina have it."""
        start = entry_offset(self, blob_index, chunk)
        if start is None:
            return None
        self._need(start, CHUNK_ENTRY.size)
        entry = ChunkEntry._make(CHUNK_ENTRY.unpack_from(self._view, start))
        return entry if (entry.blob_index, entry.index) == (blob_index, chunk) else None


class Rest(Protocol):
    """Who has the whole bootstrap, or gets it."""

    def check(self) -> None:
        """Raise what is wrong with the whole, if that is known."""

    def bootstrap(self) -> Bootstrap:
        """Return the whole, checked; waits for it.  Raises what getting and checking it raise."""


class PartialBootstrap(WatchedBootstrap):
    """A bootstrap of proven pages.  Threads share it."""

    def __init__(self, size_bytes: int, pages: Mapping[int, memoryview]) -> None:
        """Take *pages* by their number, of 4096 bytes each; *size_bytes* is a multiple of that.

        Raises NotHereError if what every reader needs is not among them, FormatError.
        """
        # Memory that nobody writes to takes none.
        buffer = mmap.mmap(-1, size_bytes)
        for number, data in pages.items():
            buffer[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] = bytes(data)
        self._here = frozenset(pages)
        self._rest: Rest | None = None
        self._whole: Bootstrap | None = None
        self._lock = threading.Lock()
        self._early = memoryview(buffer).toreadonly()
        super().__init__(self._early, self._ensure)

    @property
    def here(self) -> Collection[int]:
        """The numbers of the pages that came ahead."""
        return self._here

    def has(self, offset: int, size_bytes: int) -> bool:
        """Return whether a range came ahead; one of no bytes did, wherever it is."""
        pages = range(offset // PAGE_BYTES, -(-(offset + size_bytes) // PAGE_BYTES))
        return not size_bytes or self._here.issuperset(pages)

    def early(self, offset: int, size_bytes: int) -> memoryview:
        """Return bytes that came ahead: see :meth:`has`."""
        return self._early[offset : offset + size_bytes]

    def complete_by(self, rest: Rest) -> None:
        """Get all else from *rest* from now on."""
        self._rest = rest

    def _ensure(self, offset: int, size_bytes: int) -> None:
        if self._whole is not None:
            return
        if self._rest is not None:
            self._rest.check()
        if self.has(offset, size_bytes):
            return
        if self._rest is None:
            raise NotHereError(f"{size_bytes} bytes at {offset} of the bootstrap are not here")
        whole = self._rest.bootstrap()
        with self._lock:
            self._view, self._chunk_entries = whole.view, whole.chunk_entries
            self._whole = whole

    def block(self, directory: Inode, index: int) -> bytes:
        """Return one block of a directory."""
        return bytes(self._directory_block(directory, index))

    def chunks_here(self, inode: Inode) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
        """Yield (number, fields of its index) of those chunks of a regular file whose indexes came
        ahead.  Raises FormatError if they leave the image.
        """
        size = len(Bootstrap.chunk_array(self, inode))
        start = array_start(inode)
        for page in range(start // PAGE_BYTES, -(-(start + size) // PAGE_BYTES)):
            if page in self._here:
                first = max(start, page * PAGE_BYTES)
                stop = min(start + size, (page + 1) * PAGE_BYTES)
                fields = CHUNK_INDEX.iter_unpack(self._early[first:stop])
                yield from enumerate(fields, (first - start) // CHUNK_INDEX.size)

    def entries_here(self, blob_index: int) -> Iterator[ChunkEntry]:
        """Yield the entries of the chunks of a blob that came ahead."""
        count = self.blobs[blob_index].chunk_count
        first = entry_offset(self, blob_index, 0)
        if first is None:
            return
        table = self.header.extended
        end = min(
            first + count * CHUNK_ENTRY.size, table.chunk_table_offset + table.chunk_table_size
        )
        for page in sorted(self._here):
            number = max(
                -(-(page * PAGE_BYTES - CHUNK_ENTRY.size + 1 - first) // CHUNK_ENTRY.size), 0
            )
            offset = first + number * CHUNK_ENTRY.size
            while offset < min(end, (page + 1) * PAGE_BYTES):
                # One that crosses pages belongs to the second.
                stop = offset + CHUNK_ENTRY.size
                if (
                    (stop - 1) // PAGE_BYTES == page
                    and stop <= end
                    and self.has(offset, CHUNK_ENTRY.size)
                ):
                    entry = ChunkEntry._make(CHUNK_ENTRY.unpack_from(self._early, offset))
                    if (entry.blob_index, entry.index) == (blob_index, number):
                        yield entry
                number += 1
                offset = stop

    @property
    def view(self) -> memoryview:
        """The whole image, read-only."""
        self._ensure(0, self.size_bytes)
        return super().view

    @property
    def chunk_entries(self) -> ChunkEntries:
        """The chunk table of the image."""
        self._ensure(0, self.size_bytes)
        return super().chunk_entries

    def chunk_digests(self, blob_index: int) -> ChunkDigests:
        """Return the digests of the chunks of one blob (0-based index)."""
        self._ensure(0, self.size_bytes)
        return super().chunk_digests(blob_index)

    def close(self) -> None:
        """Release what came ahead; the whole is closed by who opened it."""
        with suppress(BufferError):
            self._early.release()


def fixed_parts(bootstrap: Bootstrap) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of all that opening a bootstrap reads."""
    table, count = bootstrap.header.extended, len(bootstrap.blobs)
    yield 0, DEVICE_SLOT_OFFSET + count * DEVICE_SLOT_SIZE
    yield table.blob_table_offset, count * BLOB_ENTRY.size
    if table.prefetch_table_offset:
        yield table.prefetch_table_offset, table.prefetch_table_size


def array_start(inode: Inode) -> int:
    """Return where the chunk indexes of a regular file begin."""
    return inode.offset + inode.inode_size + inode.xattr_size + 7 & -8


def entry_offset(bootstrap: Bootstrap, blob_index: int, chunk: int) -> int | None:
    """Return where the entry of a chunk is in a table that leaves none out; None outside of it."""
    blobs, table = bootstrap.blobs, bootstrap.header.extended
    if not 0 <= blob_index < len(blobs) or not 0 <= chunk < blobs[blob_index].chunk_count:
        return None
    position = sum(blob.chunk_count for blob in blobs[:blob_index]) + chunk
    start = position * CHUNK_ENTRY.size
    if start + CHUNK_ENTRY.size > table.chunk_table_size:
        return None
    return table.chunk_table_offset + start


def parse_chunk_index(
    bootstrap: Bootstrap, nid: int, fields: tuple[int, int, int, int]
) -> tuple[int, int, int]:
    """Return (blob index, chunk, address in blocks).  Raises FormatError for a blob that is not
    there.
    """
    low, device, high, address = fields
    if not 0 < device <= len(bootstrap.blobs):
        raise FormatError(f"inode {nid}: a chunk lies on device {device}, not there")
    return device - 1, low | high << 16, address
