"""A native image: the tree of its bootstrap over the blobs that hold its data.

Nothing is decoded that is not asked for: opening builds no object per file, a lookup touches the
directories on its way, a read the chunks it covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, TypeVar, cast

from lamina.content.statistics import Statistics
from lamina.erofs.layout import Inode
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, UnsupportedError
from lamina.image.base import ImageBase, Stat, Where, below, shown
from lamina.image.errors import ClosedImageError, FileKindError, NotDirectoryError
from lamina.image.file import require_file

if TYPE_CHECKING:
    from lamina.blob.seal import HiddenKey
    from lamina.content.image_blobs import ImageBlobs
    from lamina.content.lazy_blob import LazyBlob
    from lamina.content.read_log import ReadLog
    from lamina.content.start_pages import StartPages
    from lamina.oci.manifest import ImageConfig, Manifest
    from lamina.oci.reference import Reference
    from lamina.source.network_estimate import NetworkEstimate

T = TypeVar("T")


class Closable(Protocol):
    """What has an end."""

    def close(self) -> None:
        """End it."""


class FileChunk(NamedTuple):
    """One chunk of a file: ``size_bytes`` of it at ``file_offset``, and where they are kept."""

    file_offset: int
    size_bytes: int
    blob_index: int
    chunk_index: int
    blob_offset: int
    """In the uncompressed address space of the blob."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image came from.

    ``reference`` has the digest of the manifest; ``bootstrap_path`` is the file that is mapped;
    ``accepted`` has the digest of what a policy accepted: that manifest, or one that leads to it.
    ``start_secret`` opens the start artifacts of a sealed image.
    ``note`` is what the user should be told of the version, if anything.
    """

    bootstrap_path: Path
    reference: Reference | None = None
    manifest: Manifest | None = None
    config: ImageConfig | None = None
    accepted: Reference | None = None
    start_secret: HiddenKey | None = None
    note: str | None = None

    @property
    def pinned(self) -> str | None:
        """The reference by which the same version is opened again, None if it has none."""
        return None if self.reference is None else str(self.accepted or self.reference)


class LazyImage(ImageBase):
    """An opened native image.  Inode numbers are nids.  Threads share it; close it when done."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        blobs: ImageBlobs,
        *,
        origin: Origin | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        """Read *bootstrap* with *blobs*, which are in the order of its blob table.

        *resources* are closed with the image; without them everything stays the caller's.
        """
        self.bootstrap = bootstrap
        self.blobs = blobs
        self.origin = origin
        self.metadata_reads: ReadLog | None = None
        """Who notes what a kernel reads of the bootstrap; set before the image is mounted."""
        self._resources = resources or ExitStack()
        self._owns_bootstrap = resources is not None

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return isinstance(self.bootstrap, _ClosedBootstrap)

    @property
    def is_early(self) -> bool:
        """Whether it is used before its metadata layer has come."""
        return False

    def check(self) -> None:
        """Raise what is wrong with the image, if that is known: of one that was opened nothing."""

    @property
    def bootstrap_path(self) -> Path:
        """The bootstrap as a file, for the kernel; UnsupportedError if it is only in memory."""
        if self.origin is None:
            raise UnsupportedError("this image was opened from memory, so it has no bootstrap file")
        return self.origin.bootstrap_path

    @property
    def start_pages(self) -> StartPages | None:
        """What comes ahead of the readers, for a mount to follow; None if nothing does."""
        return self.blobs.early

    @property
    def config(self) -> ImageConfig:
        """The image configuration; of an image without one, an empty one."""
        if self.origin is not None and self.origin.config is not None:
            return self.origin.config
        from lamina.oci.manifest import ImageConfig

        return ImageConfig()

    @property
    def manifest(self) -> Manifest | None:
        """The image manifest, None for an image that was opened without one."""
        return self.origin.manifest if self.origin is not None else None

    @property
    def start_secret(self) -> HiddenKey | None:
        """What opens the start artifacts of a sealed image; None if nothing does."""
        return self.origin.start_secret if self.origin is not None else None

    @property
    def statistics(self) -> Statistics:
        """What was fetched since the image was opened, over all blobs."""
        total = Statistics()
        for blob in self.opened_blobs:
            total.add(blob.statistics)
        return total

    @property
    def network_estimate(self) -> NetworkEstimate:
        """What a request to the image's place costs, as far as it is known."""
        return self.blobs.fetcher.estimate

    @property
    def waited_s(self) -> float:
        """How long readers on this node waited for bytes so far, of whatever image."""
        return self.blobs.fetcher.priority.waited_s

    def wait_for_passes(self) -> None:
        """Return when no blob is being read whole (:mod:`lamina.source.sequential_reads`)."""
        self.blobs.fetcher.sequential_reads.wait()

    @property
    def opened_blobs(self) -> Sequence[LazyBlob]:
        """Those of the blobs of which something was asked."""
        return self.blobs.opened

    @property
    def root(self) -> Stat:
        """The root directory."""
        return _stat(b"/", self.bootstrap.inode(self.bootstrap.root_nid))

    def stat_of(self, nid: int) -> Stat:
        """Return an inode by its number, without a path.  Raises FormatError if there is none."""
        return _stat(b"", self.bootstrap.inode(nid))

    def close_with(self, resource: Closable) -> None:
        """Close *resource* before the image itself is closed."""
        self._resources.callback(resource.close)

    def child(self, directory: Stat, name: bytes) -> Stat | None:
        """Return the entry *name* of a directory, or None; O(log n) of its size."""
        nid = self.bootstrap.lookup(self.bootstrap.inode(directory.ino), name)
        if nid is None:
            return None
        return _stat(below(directory, name), self.bootstrap.inode(nid))

    @property
    def most_directory_bytes(self) -> int:
        """What all directories of a sound tree take together, at most."""
        return self.bootstrap.size_bytes

    def scandir(self, where: Where) -> Iterator[tuple[bytes, Stat]]:
        """Yield (name, Stat) of a directory in byte order, without ``.`` and ``..``."""
        here = self.find(where)
        if not here.is_dir:
            raise NotDirectoryError(f"{shown(here.path)} is not a directory")
        prefix = below(here, b"")
        inode = self.bootstrap.inode
        for name, nid in self.bootstrap.names(inode(here.ino)):
            yield name, _stat(prefix + name, inode(nid))

    def readlink(self, where: Where) -> bytes:
        """Return the target of a symbolic link; raises FileKindError if it is none."""
        here = self.find(where, follow_symlinks=False)
        if not here.is_symlink:
            raise FileKindError(f"{shown(here.path)} is not a symbolic link")
        return self.bootstrap.readlink(self.bootstrap.inode(here.ino))

    def xattrs(self, where: Where) -> dict[bytes, bytes]:
        """Return the extended attributes, by full name, of the inode itself (no link followed)."""
        here = self.find(where, follow_symlinks=False)
        return self.bootstrap.xattrs(self.bootstrap.inode(here.ino))

    def chunks(self, where: Where, first: int = 0, count: int | None = None) -> Iterator[FileChunk]:
        """Yield the chunks of a regular file, *count* of them from number *first* on."""
        here = self.find(where)
        require_file(here)
        size = self.bootstrap.chunk_size
        indexes = self.bootstrap.chunks(self.bootstrap.inode(here.ino), first, count)
        for number, index in enumerate(indexes, first):
            start = number * size
            yield FileChunk(
                start,
                min(size, here.size - start),
                index.blob_index,
                index.chunk_index,
                index.block_address * self.bootstrap.block_size,
            )

    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read *size* bytes of a regular file at *offset*; fewer only at the end of the file.

        Raises what :meth:`lamina.content.lazy_blob.LazyBlob.ensure` does, and FormatError if a
        chunk of the file lies outside its blob.
        """
        require_file(stat)
        end = min(offset + size, stat.size)
        if offset < 0 or offset >= end:
            return b""
        buffer = bytearray(end - offset)
        view = memoryview(buffer)
        runs = list(self.file_runs(stat, offset, end))
        if len(runs) > 1 and (self.start_pages is None or self.start_pages.is_over):
            self.ensure((index, start, length) for _, length, index, start in runs)
        for start, length, blob_index, blob_offset in runs:
            part = view[start - offset : start - offset + length]
            if self.blobs.readable[blob_index].read_into(blob_offset, part) != length:
                raise FormatError(f"{shown(stat.path)}: a chunk lies outside its blob")
        return bytes(buffer)

    def ensure(self, ranges: Iterable[tuple[int, int, int]], *, background: bool = False) -> None:
        """Make ranges of blobs ready, (blob index, offset, size) each, over all connections.

        More than a budget of the store allows at one time is left to who reads it.  Raises what
        :meth:`lamina.content.lazy_blob.LazyBlob.ensure` does.
        """
        by_blob: dict[int, list[tuple[int, int]]] = {}
        room = -1
        for index, offset, size in ranges:
            if room < 0:
                room = self.blobs[index].cache.space.window_bytes
            if size > room:
                break
            room -= size
            by_blob.setdefault(index, []).append((offset, size))

        def work(index: int) -> None:
            self.blobs[index].ensure_ranges(by_blob[index], background=background)

        self.run_parallel(work, by_blob)

    def read_stored(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        """Read a part of a blob as it is stored, which nothing verifies; raises FetchError."""
        return bytes(self.blobs.fetcher.read_range(blob_id, offset, size_bytes))

    def run_parallel(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call *work* for every item with the threads that fetch; raises what the first raises."""
        self.blobs.run_parallel(work, items)

    def file_runs(self, stat: Stat, offset: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (offset in file, size, blob, offset in blob); neighbours in a blob are joined."""
        chunk_size = self.bootstrap.chunk_size
        first = offset // chunk_size
        run: tuple[int, int, int, int] | None = None
        for chunk in self.chunks(stat, first, -(-end // chunk_size) - first):
            start = max(offset, chunk.file_offset)
            stop = min(end, chunk.file_offset + chunk.size_bytes)
            blob_offset = chunk.blob_offset + start - chunk.file_offset
            if run and (chunk.blob_index, blob_offset) == (run[2], run[3] + run[1]):
                run = run[0], run[1] + stop - start, run[2], run[3]
                continue
            if run:
                yield run
            run = start, stop - start, chunk.blob_index, blob_offset
        if run:
            yield run

    def close(self) -> None:
        """Close the blobs and the bootstrap; may be called again.  Then whatever needs them raises
        ClosedImageError.
        """
        self._resources.close()
        if self._owns_bootstrap:
            self.bootstrap = cast("Bootstrap", _ClosedBootstrap())


class _ClosedBootstrap:
    """Stands for the bootstrap of an image that is closed."""

    def __getattr__(self, _name: str) -> NoReturn:
        raise ClosedImageError("the image is closed")


def _stat(path: bytes, inode: Inode) -> Stat:
    # Once an entry of every walk: unpacking takes a third of the time of naming the fields.
    nid, mode, uid, gid, size, mtime, mtime_ns, nlink, rdev = inode[:9]
    return Stat(path, nid, mode, nlink, uid, gid, size, mtime, mtime_ns, rdev)
