"""What a disk is to whoever serves it or writes it out; disks that are put together of others."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

READ_BYTES: Final = 8 << 20
"""A size in which a whole disk is best read: enough for all connections to have work."""


class Segment(NamedTuple):
    """A part of a range of a disk, in bytes: zeros if ``is_hole``."""

    offset: int
    size_bytes: int
    is_hole: bool


class Disk(Protocol):
    """A device that is only read.  Threads share it."""

    @property
    def size_bytes(self) -> int:
        """How large it is."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; the count is less only at the end of the disk."""

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view* if all of the range is here now; if not (False), what it holds is nothing."""

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        """Cut a range, as far as it is on the disk, into data and holes; neighbours differ."""

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        """Tell whether the range can be read now without fetching."""

    def is_hole(self, offset: int, size_bytes: int) -> bool:
        """Tell whether all of a range is zeros because nothing is there."""


def merged(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Join neighbours of one kind."""
    run: Segment | None = None
    for each in segments:
        if run is not None and run.is_hole == each.is_hole:
            run = run._replace(size_bytes=run.size_bytes + each.size_bytes)
            continue
        if run is not None:
            yield run
        run = each
    if run is not None:
        yield run


class _DiskAtHand(ABC):
    """A disk all of which is here, and counts as data."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes: Final = size_bytes

    @abstractmethod
    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the disk."""

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view*."""
        return self.read_into(offset, view) == len(view)

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        """Yield the range, all of which counts as data."""
        size = min(size_bytes, self.size_bytes - offset)
        if size > 0:
            yield Segment(offset, size, is_hole=False)

    def is_ready(self, _offset: int, _size_bytes: int) -> bool:
        """Return True."""
        return True

    def is_hole(self, _offset: int, _size_bytes: int) -> bool:
        """Return False."""
        return False


class BytesDisk(_DiskAtHand):
    """A disk, or a part of one, in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        super().__init__(len(data))

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count."""
        part = self._data[offset : offset + len(buffer)]
        memoryview(buffer)[: len(part)] = part
        return len(part)


class FileDisk(_DiskAtHand):
    """A disk that is a file; the descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        super().__init__(os.fstat(fd).st_size)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the disk."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done


class JoinedDisk:
    """Disks at places of a larger one; between them and behind the last are holes."""

    def __init__(self, parts: Sequence[tuple[int, Disk]], size_bytes: int | None = None) -> None:
        """*parts* are in order and do not overlap; *size_bytes* is their end if it is not given."""
        self._starts = [start for start, _ in parts]
        self._disks = [disk for _, disk in parts]
        ends = [start + disk.size_bytes for start, disk in parts]
        if any(end > start for end, start in zip(ends, self._starts[1:], strict=False)):
            raise ValueError("the parts of a disk overlap")
        self.size_bytes: Final = size_bytes if size_bytes is not None else ends[-1]

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill *buffer* from *offset* on; returns the count, less only at the end of the disk."""
        view = memoryview(buffer).cast("B")
        done = 0
        for start, size, disk in self._parts(offset, len(view)):
            part = view[done : done + size]
            if disk is None:
                part[:] = bytes(size)
            elif disk[1].read_into(start - disk[0], part) != size:
                return done
            done += size
        return done

    def read_ready(self, offset: int, view: memoryview) -> bool:
        """Fill *view* if all of that range is here now."""
        done = 0
        for start, size, disk in self._parts(offset, len(view)):
            part = view[done : done + size]
            if disk is None:
                part[:] = bytes(size)
            elif not disk[1].read_ready(start - disk[0], part):
                return False
            done += size
        return done == len(view)

    def segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        """Cut a range, as far as it is on the disk, into data and holes; neighbours differ."""
        return merged(self._segments(offset, size_bytes))

    def _segments(self, offset: int, size_bytes: int) -> Iterator[Segment]:
        for start, size, disk in self._parts(offset, size_bytes):
            if disk is None:
                yield Segment(start, size, is_hole=True)
                continue
            for each in disk[1].segments(start - disk[0], size):
                yield each._replace(offset=each.offset + disk[0])

    def is_ready(self, offset: int, size_bytes: int) -> bool:
        """Return whether the range can be read now without fetching."""
        return all(
            disk is None or disk[1].is_ready(start - disk[0], size)
            for start, size, disk in self._parts(offset, size_bytes)
        )

    def is_hole(self, offset: int, size_bytes: int) -> bool:
        """Return whether all of a range is zeros because nothing is there."""
        return all(
            disk is None or disk[1].is_hole(start - disk[0], size)
            for start, size, disk in self._parts(offset, size_bytes)
        )

    def _parts(
        self, offset: int, size_bytes: int
    ) -> Iterator[tuple[int, int, tuple[int, Disk] | None]]:
        """Yield (offset, size, where its disk begins and which it is) of all parts of a range."""
        end = min(offset + size_bytes, self.size_bytes)
        number = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            if number == len(self._disks) or end <= self._starts[number]:
                yield offset, end - offset, None
                return
            start, disk = self._starts[number], self._disks[number]
            if offset < start:
                yield offset, start - offset, None
                offset = start
            stop = min(end, start + disk.size_bytes)
            if offset < stop:
                yield offset, stop - offset, (start, disk)
                offset = stop
            number += 1


class DiskReader:
    """A disk as a file that is read from its begin."""

    def __init__(self, disk: Disk, progress: Callable[[int], None] = lambda _: None) -> None:
        self._disk = disk
        self._progress = progress
        self._offset = 0
        self._buffer = memoryview(b"")

    def read(self, size_bytes: int) -> bytes:
        """Return that much, less only at the end."""
        found = b""
        while len(found) < size_bytes:
            if not self._buffer:
                data = bytearray(min(READ_BYTES, self._disk.size_bytes - self._offset))
                count = self._disk.read_into(self._offset, data) if data else 0
                if not count:
                    break
                self._buffer = memoryview(data)[:count]
                self._offset += count
                self._progress(count)
            part = self._buffer[: size_bytes - len(found)]
            self._buffer = self._buffer[len(part) :]
            found = bytes(part) if not found else found + bytes(part)
        return found
