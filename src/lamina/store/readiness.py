"""The readiness map: which chunks of one blob are verified and in its cache file.

All processes that use the blob map its map file shared, so a chunk that one of them marks is ready
for all at once, and the first missing chunk of a range is one ``memchr``.  Little-endian:

====== ==== ===============================================================================
offset size field
====== ==== ===============================================================================
0      8    magic ``LAMREADY``
8      4    version, 2
12     4    CRC-32 of bytes 16..112
16     8    chunk count C
24     8    size of the cache file in bytes
32     8    inode number of the cache file, so that a map is never used with another file
40     32   identity: what the chunks were verified against (:mod:`lamina.store.node`)
72     16   boot id of the kernel under which chunks were marked
88     8    zone count Z
96     4    generation of that inode, 0 where the file system does not tell: numbers are used again
100    12   zeros
112    4    clean: 0x4E41454C if all chunks are ready and the cache file was flushed to disk
116    4    zeros
120    8    generation: how often something was evicted
128    3968 zeros
4096   C    one byte a chunk: 0 missing, 1 ready
4096+C C    one byte a chunk: 1 if it was ready in an earlier boot, and is to be verified again
...    0-15 zeros, up to a multiple of 16
...    16*Z zones: first chunk u32, first block (4096 bytes) u32, last use u32, zero u32
====== ==== ===============================================================================

**Power cuts.**  Marks are only memory until the kernel writes them back, and so is the data: after
a power cut either may be missing.  A map of another boot therefore makes nothing ready, unless it
is clean: what it says becomes a doubt, and a doubtful chunk is verified before it is used.

**Eviction.**  A zone is a run of whole pieces, about 1 MiB long: the unit that is evicted.  Its
chunks stop being ready first, then the generation grows, then the data goes.  So whoever reads the
generation, finds its chunks ready, reads the data, and finds the generation as it was, has not read
a hole.  Last use is in sixteenths of a second since 1970, modulo 2**32.
"""

from __future__ import annotations

import mmap
import os
import time
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from lamina.posix.write import write_all
from lamina.store.files import replacing

HEADER_SIZE: Final = 4096
MAGIC: Final = b"LAMREADY"
VERSION: Final = 2
CLEAN: Final = 0x4E41454C
PREFIX: Final = Struct("<8sII")
BODY: Final = Struct("<QQQ32s16sQI12x")
BODY_OFFSET: Final = PREFIX.size
CLEAN_FIELD: Final = Struct("<I")
CLEAN_OFFSET: Final = BODY_OFFSET + BODY.size
GENERATION: Final = Struct("<Q")
GENERATION_OFFSET: Final = 120
ZONE: Final = Struct("<III4x")
LAST_USE: Final = Struct("<I")
LAST_USE_OFFSET: Final = 8
MISSING: Final = b"\0"
READY: Final = b"\1"
BLOCK_SHIFT: Final = 12
USE_TICKS_PER_S: Final = 16

ONE_ZONE: Final = ((0, 0),)


class Header(NamedTuple):
    """What a map must say to be believed."""

    chunk_count: int
    size_bytes: int
    inode: int
    identity: bytes
    boot_id: bytes
    zone_count: int = 1
    inode_generation: int = 0


class Zone(NamedTuple):
    """A run of chunks, and the bytes of the cache file that hold them and nothing else."""

    number: int
    first: int
    stop: int
    offset: int
    end: int
    last_use: int


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


def use_time() -> int:
    """Return the present as a last use."""
    return int(time.time() * USE_TICKS_PER_S) & 0xFFFFFFFF


def _zones_offset(chunk_count: int) -> int:
    return -(-(HEADER_SIZE + 2 * chunk_count) // 16) * 16


def _file_size(header: Header) -> int:
    return _zones_offset(header.chunk_count) + header.zone_count * ZONE.size


class ReadinessMap:
    """One open map file.  Marks and tests are single memory accesses, so threads may share it."""

    def __init__(self, fd: int, header: Header) -> None:
        """Map the file open as *fd* (which stays the caller's).  Raises OSError or ValueError."""
        self.chunk_count = count = header.chunk_count
        self.size_bytes = header.size_bytes
        self._map = mmap.mmap(fd, _file_size(header))
        self._unverified = HEADER_SIZE + count
        self._zones = _zones_offset(count)
        found = list(ZONE.iter_unpack(self._map[self._zones :]))
        self._zone_firsts = array("I", [first for first, _, _ in found])
        self._zone_blocks = array("I", [block for _, block, _ in found])

    def is_ready(self, chunk: int) -> bool:
        """Tell whether *chunk* is ready."""
        return self._map[HEADER_SIZE + chunk] == 1

    def states(self) -> bytes:
        """Return a copy of the map: a byte for each chunk, 1 if it is ready, else 0."""
        return self._map[HEADER_SIZE : HEADER_SIZE + self.chunk_count]

    def first_missing(self, first: int, stop: int) -> int:
        """Return the first chunk of ``[first, stop)`` that is not ready, -1 if all are."""
        found = self._map.find(MISSING, HEADER_SIZE + first, HEADER_SIZE + stop)
        return found - HEADER_SIZE if found >= 0 else -1

    def mark(self, first: int, count: int = 1) -> None:
        """Make *count* chunks from *first* on ready; their data must have been written before.

        The caller holds :attr:`lamina.store.locks.Lock.WRITE`.
        """
        self._map[HEADER_SIZE + first : HEADER_SIZE + first + count] = READY * count
        self.clear_unverified(first, count)

    def is_unverified(self, chunk: int) -> bool:
        """Tell whether the file may hold *chunk* from before the last boot."""
        return self._map[self._unverified + chunk] == 1

    def clear_unverified(self, first: int, count: int = 1) -> None:
        """Forget doubts, because the chunks were verified or are known to be damaged."""
        self._map[self._unverified + first : self._unverified + first + count] = bytes(count)

    @property
    def complete(self) -> bool:
        """True if every chunk is ready."""
        return self.first_missing(0, self.chunk_count) < 0

    @property
    def ready_count(self) -> int:
        """How many chunks are ready; reads the whole map."""
        return self.chunk_count - self._map[HEADER_SIZE : self._unverified].count(0)

    @property
    def generation(self) -> int:
        """How often something was evicted."""
        return int(GENERATION.unpack_from(self._map, GENERATION_OFFSET)[0])

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
        """Take over a map of an earlier boot: a clean one as it is, else ready becomes doubtful.

        Killed in the middle, it is begun again by the next who opens the map.
        """
        count = self.chunk_count
        if not (self.clean and self.complete):
            ready = int.from_bytes(self._map[HEADER_SIZE : self._unverified])
            doubts = int.from_bytes(self._map[self._unverified : self._unverified + count])
            self._map[self._unverified : self._unverified + count] = (ready | doubts).to_bytes(
                count
            )
            self._map[HEADER_SIZE : self._unverified] = bytes(count)
            CLEAN_FIELD.pack_into(self._map, CLEAN_OFFSET, 0)
        encoded = encode_header(header)
        self._map[: len(encoded)] = encoded

    @property
    def zone_count(self) -> int:
        """Number of zones."""
        return len(self._zone_firsts)

    def zone(self, number: int) -> Zone:
        """Return a zone."""
        more = number + 1 < self.zone_count
        stop = self._zone_firsts[number + 1] if more else self.chunk_count
        end = self._zone_blocks[number + 1] << BLOCK_SHIFT if more else self.size_bytes
        used = LAST_USE.unpack_from(self._map, self._last_use_offset(number))[0]
        offset = self._zone_blocks[number] << BLOCK_SHIFT
        return Zone(number, self._zone_firsts[number], stop, offset, end, used)

    def zones(self) -> Iterator[Zone]:
        """Yield all zones."""
        return map(self.zone, range(self.zone_count))

    def holds_something(self, zone: Zone) -> bool:
        """Tell whether any chunk of *zone* is ready or doubtful."""
        count = zone.stop - zone.first
        ready, doubts = HEADER_SIZE + zone.first, self._unverified + zone.first
        return any(self._map[start : start + count].count(0) != count for start in (ready, doubts))

    def touch(self, offset: int, size_bytes: int, now: int) -> None:
        """Record that this range of the address space was used."""
        first = max(bisect_right(self._zone_blocks, offset >> BLOCK_SHIFT) - 1, 0)
        last = (offset + size_bytes - 1) >> BLOCK_SHIFT
        for number in range(first, self.zone_count):
            if self._zone_blocks[number] > last:
                break
            LAST_USE.pack_into(self._map, self._last_use_offset(number), now)

    def forget(self, zone: Zone) -> None:
        """Make all chunks of *zone* missing; the caller then takes its data out of the file.

        The caller has :attr:`lamina.store.locks.Lock.WRITE` exclusively.
        """
        if self.clean:
            # On disk before the data is gone, or the next boot would trust a hole.
            CLEAN_FIELD.pack_into(self._map, CLEAN_OFFSET, 0)
            self._map.flush(0, HEADER_SIZE)
        count = zone.stop - zone.first
        for start in (HEADER_SIZE + zone.first, self._unverified + zone.first):
            self._map[start : start + count] = bytes(count)
        GENERATION.pack_into(self._map, GENERATION_OFFSET, self.generation + 1)

    def _last_use_offset(self, number: int) -> int:
        return self._zones + number * ZONE.size + LAST_USE_OFFSET

    def close(self) -> None:
        """Unmap the file; may be called again."""
        self._map.close()


def create_map(path: Path, header: Header, zones: Sequence[tuple[int, int]] = ONE_ZONE) -> None:
    """Put a map with nothing ready at *path*, in place of one that others may still have open.

    *zones* are (first chunk, first byte), ascending, of which the first is (0, 0).  Every byte is
    written: a store through the mapping into a hole would be a SIGBUS on a full disk.
    Raises OSError.
    """
    header = header._replace(zone_count=len(zones))
    data = encode_header(header).ljust(_zones_offset(header.chunk_count), b"\0")
    data += b"".join(ZONE.pack(first, offset >> BLOCK_SHIFT, 0) for first, offset in zones)
    with replacing(path) as fd:
        write_all(fd, data, 0)


def map_file(fd: int) -> ReadinessMap | None:
    """Map whatever map is open as *fd*, or return None if it is none.  Raises OSError."""
    header = _read_header(fd)
    return None if header is None else ReadinessMap(fd, header)


def _read_header(fd: int) -> Header | None:
    header = decode_header(os.pread(fd, HEADER_SIZE, 0))
    return None if header is None or os.fstat(fd).st_size != _file_size(header) else header


def count_ready(path: Path) -> tuple[int, int] | None:
    """Return how many chunks the map at *path* says to be ready, and how many there are; None if it
    is no map.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        found = map_file(fd)
        if found is None:
            return None
        try:
            return found.ready_count, found.chunk_count
        finally:
            found.close()
    finally:
        os.close(fd)


def open_map(path: Path, expected: Header) -> tuple[ReadinessMap, int] | None:
    """Open the map at *path* if it can be believed for *expected*, else return None.

    Returns the map and the descriptor of its file, which is the caller's.  Raises OSError only for
    what is not "there is no such file".
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    found = None
    try:
        found = _believed(fd, expected)
    finally:
        if found is None:
            os.close(fd)
    return None if found is None else (found, fd)


def _believed(fd: int, expected: Header) -> ReadinessMap | None:
    header = _read_header(fd)
    if header is None:
        return None
    wanted = expected._replace(zone_count=header.zone_count)
    if header._replace(boot_id=expected.boot_id) != wanted:
        return None
    found = ReadinessMap(fd, header)
    if header.boot_id != expected.boot_id:
        found.adopt(wanted)
    return found
