"""Chunks that some blob of this node has already, for another blob that wants them.

What is returned here is *not* verified: the index may be out of date, and the chunk evicted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from lamina.store.chunk_places import ChunkPlaces
from lamina.store.locks import Lock, is_locked
from lamina.store.readiness import ReadinessMap, map_file

MOST_OPEN: Final = 16
FICLONERANGE: Final = 0x4020940D
# struct file_clone_range: src_fd s64 | src_offset u64 | src_length u64 | dest_offset u64
_CLONE_RANGE: Final = Struct("=qQQQ")


def blob_tag(name: str) -> int:
    """Return the number by which the index knows the cache file *name* (without its ending)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


class _Neighbour(NamedTuple):
    fd: int
    map_fd: int
    readiness: ReadinessMap

    def close(self) -> None:
        self.readiness.close()
        os.close(self.map_fd)
        os.close(self.fd)

    @property
    def safe(self) -> bool:
        """Whether reading the file cannot end up waiting for who fills it.

        The file of an incomplete blob that a kernel holds may be watched by fanotify, even by this
        process.
        """
        return self.readiness.complete or not is_locked(self.map_fd, Lock.KERNEL)


class LocalChunks:
    """The blobs of a store as a source of chunks.  Threads share it; close it when done."""

    def __init__(self, blobs: Path, index: ChunkPlaces) -> None:
        """Own *index* from now on."""
        self._blobs = blobs
        self._index = index
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Neighbour] = OrderedDict()
        self._paths: dict[int, Path] = {}
        self._listed_ns = 0
        self._reflinks = True

    def add(self, digest: bytes, tag: int, offset: int) -> None:
        """Remember where a chunk is."""
        self._index.add(digest, tag, offset)

    def knows(self, digest: bytes) -> bool:
        """Tell whether some blob of the node had a chunk, and may have it still."""
        return any(True for _ in self._index.find(digest))

    def candidates(self, digest: bytes, size_bytes: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield (bytes, tag, offset) that may be the chunk; the receiver verifies the bytes."""
        for tag, offset in self._index.find(digest):
            data = self._read(tag, offset, size_bytes)
            if len(data) == size_bytes:
                yield data, tag, offset

    def _read(self, tag: int, offset: int, size_bytes: int) -> bytes:
        with self._lock:
            neighbour = self._neighbour(tag)
            if neighbour is not None and neighbour.safe:
                with suppress(OSError):
                    return os.pread(neighbour.fd, size_bytes, offset)
        return b""

    def share(self, tag: int, offset: int, size_bytes: int, fd: int, to: int) -> bool:
        """Let *fd* have the blocks at *to* in common with the blob *tag*, where the file system
        can; else return False.  The receiver compares the bytes: the source may have changed.
        """
        if not self._reflinks:
            return False
        size = -(-size_bytes // 4096) * 4096
        with self._lock:
            neighbour = self._neighbour(tag)
            if neighbour is None:
                return False
            try:
                fcntl.ioctl(fd, FICLONERANGE, _CLONE_RANGE.pack(neighbour.fd, offset, size, to))
            except OSError:
                # ext4 and tmpfs cannot at all; others refuse, for instance, a quota.
                self._reflinks = False
                return False
        return True

    def _neighbour(self, tag: int) -> _Neighbour | None:
        found = self._open.get(tag)
        if found is not None:
            self._open.move_to_end(tag)
            return found
        path = self._path(tag)
        opened = None if path is None else _open_neighbour(path)
        if opened is not None:
            self._open[tag] = opened
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        return opened

    def _path(self, tag: int) -> Path | None:
        with suppress(OSError):
            changed_ns = self._blobs.stat().st_mtime_ns
            if changed_ns != self._listed_ns:
                names = [name for name in os.listdir(self._blobs) if name.endswith(".data")]
                self._paths = {
                    blob_tag(name.removesuffix(".data")): self._blobs / name for name in names
                }
                self._listed_ns = changed_ns
        return self._paths.get(tag)

    def close(self) -> None:
        """Close the files; may be called again."""
        with self._lock:
            self._index.close()
            while self._open:
                self._open.popitem()[1].close()


def _open_neighbour(path: Path) -> _Neighbour | None:
    fd = map_fd = -1
    readiness = None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        map_fd = os.open(path.with_suffix(".ready"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        readiness = map_file(map_fd)
    except OSError:
        pass
    if readiness is None:
        for each in (fd, map_fd):
            if each >= 0:
                os.close(each)
        return None
    return _Neighbour(fd, map_fd, readiness)
