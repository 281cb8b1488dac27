"""The readiness map: which chunks of one blob are verified and in its cache file.

A map file is a header of 4096 bytes and then one byte a chunk: 0 missing, 1 ready.  All processes
that use the blob map the file shared, so a chunk that one of them marks is ready for all at once,
and the first missing chunk of a range is one ``memchr``.  Header, little-endian:

====== ==== ===============================================================================
offset size field
====== ==== ===============================================================================
0      8    magic ``LAMREADY``
8      4    version, 1
12     4    CRC-32 of bytes 16..112
16     8    chunk count
24     8    size of the cache file in bytes
32     8    inode number of the cache file, so that a map is never used with another file
40     32   identity: what the chunks were verified against (:mod:`lamina.store.node`)
72     16   boot id of the kernel under which chunks were marked
88     24   zeros
112    4    clean: 0x4E41454C if all chunks are ready and the cache file was flushed to disk
116    3980 zeros
====== ==== ===============================================================================

Marks are only memory until the kernel writes them back, and so is the data: after a power cut
either may be missing.  A map of another boot therefore counts for nothing, unless it is clean.
"""

from __future__ import annotations

import mmap
import os
import zlib
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from lamina.store.files import FILE_MODE, write_all

HEADER_SIZE: Final = 4096
MAGIC: Final = b"LAMREADY"
VERSION: Final = 1
CLEAN: Final = 0x4E41454C
PREFIX: Final = Struct("<8sII")
BODY: Final = Struct("<QQQ32s16s24x")
BODY_OFFSET: Final = PREFIX.size
CLEAN_FIELD: Final = Struct("<I")
CLEAN_OFFSET: Final = BODY_OFFSET + BODY.size
MISSING: Final = b"\0"
READY: Final = b"\1"


class Header(NamedTuple):
    """What a map must say to be believed."""

    chunk_count: int
    size_bytes: int
    inode: int
    identity: bytes
    boot_id: bytes


@cache
def current_boot_id() -> bytes:
    """Return the 16 bytes that name this boot of the kernel (random where the kernel has none)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read().strip().replace(b"-", b"").decode("ascii"))
    except (OSError, ValueError):
        return os.urandom(16)


def encode_header(header: Header) -> bytes:
    """Return the first 112 bytes of a map file."""
    body = BODY.pack(*header)
    return PREFIX.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def decode_header(data: bytes) -> Header | None:
    """Return the header, or None if it is damaged or of another version."""
    if len(data) < HEADER_SIZE:
        return None
    magic, version, crc = PREFIX.unpack_from(data)
    body = data[BODY_OFFSET:CLEAN_OFFSET]
    if magic != MAGIC or version != VERSION or crc != zlib.crc32(body):
        return None
    return Header._make(BODY.unpack(body))


class ReadinessMap:
    """One open map file.  Marks and tests are single memory accesses, so threads may share it."""

    def __init__(self, fd: int, chunk_count: int) -> None:
        """Map the file open as *fd* (which stays the caller's).  Raises OSError or ValueError."""
        self.chunk_count = chunk_count
        self._map = mmap.mmap(fd, HEADER_SIZE + chunk_count)

    def is_ready(self, chunk: int) -> bool:
        """Tell whether *chunk* is ready."""
        return self._map[HEADER_SIZE + chunk] == 1

    def first_missing(self, first: int, stop: int) -> int:
        """Return the first chunk of ``[first, stop)`` that is not ready, -1 if all are."""
        found = self._map.find(MISSING, HEADER_SIZE + first, HEADER_SIZE + stop)
        return found - HEADER_SIZE if found >= 0 else -1

    def mark(self, first: int, count: int = 1) -> None:
        """Make *count* chunks from *first* on ready; their data must have been written before."""
        start = HEADER_SIZE + first
        self._map[start : start + count] = READY * count

    @property
    def complete(self) -> bool:
        """True if every chunk is ready."""
        return self.first_missing(0, self.chunk_count) < 0

    @property
    def ready_count(self) -> int:
        """How many chunks are ready; reads the whole map."""
        return self.chunk_count - self._map[HEADER_SIZE:].count(0)

    @property
    def clean(self) -> bool:
        """True if the data was complete and on disk when this was set."""
        return bool(CLEAN_FIELD.unpack_from(self._map, CLEAN_OFFSET)[0] == CLEAN)

    def set_clean(self) -> None:
        """Say that the data is complete and was flushed to disk; flushes the map as well."""
        self._map.flush()
        CLEAN_FIELD.pack_into(self._map, CLEAN_OFFSET, CLEAN)
        self._map.flush()

    def adopt(self, header: Header) -> None:
        """Write a new header over a clean map of an earlier boot."""
        encoded = encode_header(header)
        self._map[: len(encoded)] = encoded

    def close(self) -> None:
        """Unmap the file; may be called again."""
        self._map.close()


def create_map(path: Path, header: Header) -> None:
    """Put a map with nothing ready at *path*, in place of one that others may still have open.

    Every byte is written: a store through the mapping into a hole would be a SIGBUS on a full disk.
    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        encoded = encode_header(header)
        write_all(fd, encoded.ljust(HEADER_SIZE + header.chunk_count, b"\0"), 0)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def open_map(path: Path, expected: Header) -> ReadinessMap | None:
    """Open the map at *path* if it can be believed for *expected*, else return None.

    Raises OSError only for what is not "there is no such file".
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        header = decode_header(os.pread(fd, HEADER_SIZE, 0))
        if header is None or os.fstat(fd).st_size != HEADER_SIZE + expected.chunk_count:
            return None
        if header._replace(boot_id=expected.boot_id) != expected:
            return None
        found = ReadinessMap(fd, expected.chunk_count)
    finally:
        os.close(fd)
    if header.boot_id == expected.boot_id:
        return found
    if found.clean and found.complete:
        found.adopt(expected)
        return found
    found.close()
    return None
