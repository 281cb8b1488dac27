"""How much of the disk the store may take, and what goes when it is too much.

The space in use is counted from the blocks of the files whenever it matters, never kept, so there
is nothing to be wrong after a crash.  With a budget, counting, evicting and writing happen under
one lock of the store: what is written has been made room for, whoever else writes at the time.

Zones that were not used for longest go first.  What a kernel may read without asking
(:attr:`lamina.store.locks.Lock.KERNEL`) and what is resident stays; if nothing else is left, the
write fails with ENOSPC.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import filterfalse
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from lamina.errors import StoreError, UsageError
from lamina.store.files import locked
from lamina.store.holds import held_blobs
from lamina.store.locks import Lock, is_locked, lock_exclusive, unlock
from lamina.store.readiness import ReadinessMap, Zone, map_file, use_time
from lamina.store.spool import reserved_file

LOG: Final = logging.getLogger("lamina")

BUDGET_VARIABLE: Final = "LAMINA_STORE_BUDGET"
BUDGET: Final = re.compile(r"(\d{1,15})([KMGT]?)(?:i?B)?|(\d{1,2}|100)%", re.IGNORECASE)
FULL_DISK_STEP: Final = 16 << 20
"""What is evicted at once when the disk itself is full."""

LARGEST_WINDOW: Final = 16 << 20
SMALLEST_WINDOW: Final = 64 << 10
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def parse_budget(text: str, root: Path) -> int:
    """Return bytes for ``20G``, ``500M`` or ``80%`` of the file system that *root* is on.

    Raises UsageError.
    """
    match = BUDGET.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no budget for the node store", hint="write 20G, 500M or 80%")
    if match[3]:
        while not root.exists():
            root = root.parent
        status = os.statvfs(root)
        return status.f_blocks * status.f_frsize * int(match[3]) // 100
    return int(match[1]) << 10 * (" KMGT".index(match[2].upper()) if match[2] else 0)


class _Victim(NamedTuple):
    age: int
    path: Path
    zone: Zone


class Space:
    """The space of one store.  Threads and processes share it."""

    def __init__(
        self, root: Path, budget_bytes: int | None, pinned: Callable[[], frozenset[str]]
    ) -> None:
        """*pinned* gives the names, without their endings, of cache files that must stay."""
        self.budget_bytes = budget_bytes
        self.root = root
        self._blobs = root / "blobs"
        self._pinned = pinned
        self._counted: tuple[int, int] | None = None

    @property
    def evicts(self) -> bool:
        """Whether last uses are worth recording."""
        return self.budget_bytes is not None

    @property
    def window_bytes(self) -> int:
        """How much one reader may want to have ready at one time."""
        if self.budget_bytes is None:
            return LARGEST_WINDOW
        return min(max(self.budget_bytes // 32, SMALLEST_WINDOW), LARGEST_WINDOW)

    def used_bytes(self) -> int:
        """Count what the store takes on disk."""
        return self._metadata_bytes() + sum(map(blocks_of, _entries(self._blobs)))

    def _metadata_bytes(self) -> int:
        """Return what the small files take; counted anew only when one was added or removed."""
        names = "", "metadata", "metadata/sha256", "metadata/sha512", "index", "holds", "records"
        folders = [self.root / name for name in names]
        folders += [Path(entry.path) for entry in _entries(folders[-1]) if entry.is_dir()]
        stamp = 0
        for folder in folders:
            with suppress(FileNotFoundError):
                stamp ^= hash((folder, folder.stat().st_mtime_ns))
        if self._counted is None or self._counted[0] != stamp:
            total = sum(
                blocks_of(entry)
                for folder in folders
                for entry in _entries(folder)
                if not entry.is_dir(follow_symlinks=False)
            )
            self._counted = stamp, total
        return self._counted[1]

    @contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """Make room for so many bytes, which the caller then writes inside the block.

        Raises StoreError (ENOSPC) if the budget does not allow it.
        """
        if self.budget_bytes is None:
            yield
            return
        with locked(self.root / "space.lock"):
            excess = self.used_bytes() + size_bytes - self.budget_bytes
            if excess > 0:
                freed = self.evict(max(excess, self.budget_bytes // 64))
                if freed < excess and self.used_bytes() + size_bytes > self.budget_bytes:
                    raise StoreError(
                        f"the node store {self.root} has reached its budget of"
                        f" {self.budget_bytes} bytes, and all that is in it is in use",
                        hint="raise --store-budget, or unmount or unpin an image",
                    )
            yield

    def kept_bytes(self, apart_from: Collection[str]) -> int:
        """Count what cannot be evicted: metadata, and cache files that are in use or resident, but
        for those with these names (without their endings).
        """
        kept = (self._pinned() | held_blobs(self.root)) - frozenset(apart_from)
        return self._metadata_bytes() + self._blob_bytes(kept.__contains__)

    def evictable_bytes(self, apart_from: Collection[str]) -> int:
        """Count what evicting could free at most, of other cache files than these."""
        kept = self._pinned() | held_blobs(self.root) | frozenset(apart_from)
        return self._blob_bytes(lambda name: name not in kept)

    def _blob_bytes(self, counts: Callable[[str], bool]) -> int:
        entries = (
            entry for entry in _entries(self._blobs) if counts(entry.name.rpartition(".")[0])
        )
        return sum(blocks_of(entry) for entry in entries)

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether so many bytes can be written without evicting anything."""
        status = os.statvfs(self.root)
        if status.f_bavail * status.f_frsize < size_bytes:
            return False
        return self.budget_bytes is None or self.used_bytes() + size_bytes <= self.budget_bytes

    def open_spool(self, size_bytes: int) -> BinaryIO | None:
        """Return a file for *size_bytes* that are needed for a while, with room for them; None if
        that would take more than half of the budget, or more than there is on the disk.
        """
        if self.budget_bytes is not None and size_bytes > self.budget_bytes // 2:
            return None
        try:
            with self.room(size_bytes):
                return reserved_file(self.root, size_bytes)
        except (StoreError, OSError) as error:
            LOG.info("%s has no room for %d bytes for a while: %s", self.root, size_bytes, error)
            return None

    def make_more(self, error: OSError, size_bytes: int) -> bool:
        """Evict for a disk that is full, whatever the budget is; False if *error* does not say that
        it is, or nothing could go.
        """
        return error.errno in _FULL and self.evict(max(size_bytes, FULL_DISK_STEP)) > 0

    def evict(self, size_bytes: int) -> int:
        """Evict at least so many bytes if that is possible; returns how many were freed."""
        freed = 0
        for victim in sorted(self._victims()):
            if freed >= size_bytes:
                break
            freed += self._evict_zone(victim.path, victim.zone.number)
        if freed < size_bytes:
            freed += self._sweep()
        if freed:
            LOG.debug("evicted %d bytes from %s", freed, self.root)
        return freed

    def forget(self, path: Path) -> None:
        """Take all of a cache file out that turned out to be wrong, unless a kernel reads it."""
        path = path.with_suffix(".ready")
        with _opened(path) as (readiness, _, _):
            zones = [] if readiness is None else [zone.number for zone in readiness.zones()]
        for number in zones:
            self._evict_zone(path, number)

    def _victims(self) -> Iterator[_Victim]:
        now = use_time()
        for path in self._evictable():
            with _opened(path) as (readiness, _, _):
                if readiness is None:
                    continue
                for zone in filter(readiness.holds_something, readiness.zones()):
                    age = (now - zone.last_use + 16) & 0xFFFFFFFF
                    yield _Victim(-age, path, zone)

    def _evictable(self) -> list[Path]:
        pinned = self._pinned() | held_blobs(self.root)
        names = [entry.name for entry in _entries(self._blobs) if entry.name.endswith(".ready")]
        return [
            self._blobs / name
            for name in names
            if not name.startswith(".") and name.removesuffix(".ready") not in pinned
        ]

    def _evict_zone(self, path: Path, number: int) -> int:
        """Take one zone out of a blob; returns the bytes that this freed."""
        with _exclusive(path) as (readiness, data_fd):
            if readiness is None:
                return 0
            zone = readiness.zone(number)
            readiness.forget(zone)
            # Blocks on their way to the disk may be counted late, and then none seem to be freed.
            return max(_punch(data_fd, zone.offset, zone.end), 4096)

    def _sweep(self) -> int:
        """Free what was written but never marked, or forgotten but not freed, by who was killed."""
        freed = 0
        for path in self._evictable():
            with _exclusive(path) as (readiness, data_fd):
                if readiness is None:
                    continue
                for zone in filterfalse(readiness.holds_something, readiness.zones()):
                    freed += _punch(data_fd, zone.offset, zone.end)
        return freed


def blocks_of(entry: os.DirEntry[str]) -> int:
    """Return the bytes that an entry of :func:`os.scandir` takes on the disk."""
    return entry.stat(follow_symlinks=False).st_blocks * 512


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    found: list[os.DirEntry[str]] = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                entry.stat(follow_symlinks=False)
                found.append(entry)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[ReadinessMap | None, int, int]]:
    """Open the map at *path* and its cache file, with an opening of its own for the locks."""
    lock_fd = data_fd = -1
    readiness = None
    try:
        with suppress(FileNotFoundError):
            lock_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            data_fd = os.open(path.with_suffix(".data"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if not is_locked(lock_fd, Lock.KERNEL):
                readiness = map_file(lock_fd)
        yield readiness, lock_fd, data_fd
    finally:
        if readiness is not None:
            readiness.close()
        for fd in (lock_fd, data_fd):
            if fd >= 0:
                os.close(fd)


@contextmanager
def _exclusive(path: Path) -> Iterator[tuple[ReadinessMap | None, int]]:
    """Open the map at *path* and its cache file, with nobody else at them; no map if that fails."""
    with _opened(path) as (readiness, lock_fd, data_fd):
        if readiness is None or not _lock(lock_fd):
            yield None, -1
            return
        try:
            yield readiness, data_fd
        finally:
            unlock(lock_fd, Lock.WRITE)
            unlock(lock_fd, Lock.KERNEL)


def _lock(lock_fd: int) -> bool:
    """Exclude holders and writers; False if somebody holds the blob."""
    if not lock_exclusive(lock_fd, Lock.KERNEL, wait=False):
        return False
    lock_exclusive(lock_fd, Lock.WRITE)
    return True


def _punch(fd: int, offset: int, end: int) -> int:
    """Give the blocks of a range back; returns how many bytes these were."""
    from lamina.linux.file_space import punch_hole

    before = os.fstat(fd).st_blocks
    if end > offset:
        size = -(-(end - offset) // 4096) * 4096
        punch_hole(fd, offset, size)
    return (before - os.fstat(fd).st_blocks) * 512
