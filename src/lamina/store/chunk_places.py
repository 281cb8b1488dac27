"""Which cache file of the store has a chunk, by the chunk's digest.

A table in one file that all processes map shared and write without locks.  It may lose entries,
and what it says may be out of date or torn: whoever follows it verifies what is there.

======== ==== =============================================================================
offset   size field
======== ==== =============================================================================
0        8    magic ``LAMINDEX``
8        4    version, 1
12       4    zero
16       8    how many entries were put in place of another
24       40   zeros
64       16*N slots, in buckets of four: key u64 (the first 8 bytes of the digest; 0 is an
              empty slot), blob tag u32, first block (4096 bytes) of the chunk u32
======== ==== =============================================================================

The bucket of a key is ``key mod (N / 4)``, where N is a power of two.  So a table of twice the
size is the old one twice: entries that do not belong where they are now are overwritten in time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final

from lamina.posix.write import write_all
from lamina.store.files import make_private_directory, replacing, store_error

MAGIC: Final = b"LAMINDEX"
VERSION: Final = 1
HEADER_SIZE: Final = 64
HEADER: Final = Struct("<8sI4xQ40x")
REPLACED: Final = Struct("<Q")
REPLACED_OFFSET: Final = 16
SLOT: Final = Struct("<QII")
WAYS: Final = 4
BUCKET: Final = Struct("<" + "QII" * WAYS)
KEY: Final = Struct("<Q")
FIRST_SLOTS: Final = 1 << 16
MOST_SLOTS: Final = 1 << 22
BLOCK_SHIFT: Final = 12


class ChunkPlaces:
    """The mapped table.  Threads share it; close it when done."""

    def __init__(self, folder: Path) -> None:
        """Map the table in *folder*, making, doubling or replacing it if need be.

        The caller excludes other processes meanwhile.  Raises StoreError.
        """
        make_private_directory(folder)
        path = folder / "chunks"
        try:
            size = _prepare(path)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._map = mmap.mmap(fd, size)
            finally:
                os.close(fd)
        except OSError as error:
            raise store_error(f"open the chunk index {path}", error) from error
        self._buckets = (size - HEADER_SIZE) // BUCKET.size

    def add(self, digest: bytes, tag: int, offset: int) -> None:
        """Say that the blob *tag* has the chunk at *offset* of its address space."""
        key = KEY.unpack_from(digest)[0] or 1
        start = self._start(key)
        bucket = BUCKET.unpack_from(self._map, start)
        for slot in range(WAYS):
            if bucket[3 * slot] in (key, 0):
                break
        else:
            replaced = REPLACED.unpack_from(self._map, REPLACED_OFFSET)[0]
            REPLACED.pack_into(self._map, REPLACED_OFFSET, replaced + 1)
            slot = replaced % WAYS
        SLOT.pack_into(self._map, start + slot * SLOT.size, key, tag, offset >> BLOCK_SHIFT)

    def find(self, digest: bytes) -> Iterator[tuple[int, int]]:
        """Yield (blob tag, offset) where the chunk may be."""
        key = KEY.unpack_from(digest)[0] or 1
        bucket = BUCKET.unpack_from(self._map, self._start(key))
        for slot in range(0, 3 * WAYS, 3):
            if bucket[slot] == key:
                yield bucket[slot + 1], bucket[slot + 2] << BLOCK_SHIFT

    def _start(self, key: int) -> int:
        return HEADER_SIZE + key % self._buckets * BUCKET.size

    def close(self) -> None:
        """Unmap the table; may be called again."""
        self._map.close()


def _prepare(path: Path) -> int:
    """Put a table in place that fits what was in the old one; returns its size."""
    old = _read_usable(path)
    if old is None:
        # Written as a whole: a store through the mapping into a hole would be a SIGBUS on a full
        # disk.
        return _replace(path, HEADER.pack(MAGIC, VERSION, 0) + bytes(FIRST_SLOTS * SLOT.size))
    slots = (len(old) - HEADER_SIZE) // SLOT.size
    replaced = HEADER.unpack_from(old)[2]
    if replaced <= slots // 8 or slots >= MOST_SLOTS:
        return len(old)
    entries = old[HEADER_SIZE:]
    return _replace(path, HEADER.pack(MAGIC, VERSION, 0) + entries + entries)


def _read_usable(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    slots, rest = divmod(len(data) - HEADER_SIZE, SLOT.size)
    if rest or slots < WAYS or slots & (slots - 1) or slots > MOST_SLOTS:
        return None
    magic, version, _ = HEADER.unpack_from(data)
    return data if (magic, version) == (MAGIC, VERSION) else None


def _replace(path: Path, data: bytes) -> int:
    with replacing(path) as fd:
        write_all(fd, data, 0)
    return len(data)
