"""A few files as a file system over FUSE, whose content is read from disks.

containerd mounts each file as EROFS, which the kernel does by itself where files of FUSE lie below
it.  They are opened for direct I/O, as the blobs of device ``fuse-blob`` are: the kernel asks for
what the file system needs, and there is no second page cache.

The number of a file is made of its name and of what is in it: whichever process answers knows it,
and one that has other bytes under that name does not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from lamina.errors import FormatError, StoreError, UsageError
from lamina.image.base import ImageBase, Stat, Where, below
from lamina.image.errors import FileKindError
from lamina.serve.fuse_server import Body
from lamina.serve.fuse_tree import TreeFilesystem
from lamina.serve.patience import read_patiently
from lamina.wire import fuse, fuse_reply

if TYPE_CHECKING:
    from lamina.block.base import Disk
    from lamina.serve.content_cache.files import CacheFile

_FOLDER_MODE: Final = stat.S_IFDIR | 0o555
_FILE_MODE: Final = stat.S_IFREG | 0o444
_NUMBER_BYTES: Final = 6
_FIRST_NODE: Final = fuse.ROOT_ID + 1


class CacheTree(ImageBase):
    """The files below their folders.  Threads share it; the disks stay the caller's."""

    def __init__(self, files: Sequence[CacheFile]) -> None:
        """Raise UsageError if there are none."""
        self._stats: dict[int, Stat] = {}
        self._disks: dict[int, Disk] = {}
        self._images: dict[int, str] = {}
        self._children: dict[int, dict[bytes, Stat]] = {}
        self._root = self._add(b"/", None)
        for file in files:
            self._add_below(file)
        if not self._disks:
            raise UsageError("there is no layer to offer")

    def _add_below(self, file: CacheFile) -> None:
        folder = self._root
        *folders, name = file.path.encode().split(b"/")
        for each in folders:
            folder = self.child(folder, each) or self._add(below(folder, each), folder)
        number = self._add(below(folder, name), folder, file).ino
        self._disks[number], self._images[number] = file.disk, file.image

    def _add(self, path: bytes, folder: Stat | None, file: CacheFile | None = None) -> Stat:
        disk, identity = (None, b"") if file is None else (file.disk, file.identity)
        digest = hashlib.sha256(path + b"\0" + identity).digest()
        number = int.from_bytes(digest[:_NUMBER_BYTES], "big")
        if number in self._stats:
            raise UsageError(f"two files of the cache have the number of {path.decode()}")
        mode, size = (_FOLDER_MODE, 0) if disk is None else (_FILE_MODE, disk.size_bytes)
        new = Stat(path, number, mode, 1 if disk else 2, 0, 0, size, 0, 0, 0)
        self._stats[number] = new
        if disk is None:
            self._children[number] = {}
        if folder is not None:
            self._children[folder.ino][path.rpartition(b"/")[2]] = new
        return new

    @property
    def root(self) -> Stat:
        """The root directory."""
        return self._root

    def stat_of(self, nid: int) -> Stat:
        """Return an inode by its number.  Raises FormatError if there is none."""
        found = self._stats.get(nid)
        if found is None:
            raise FormatError(f"the cache has no file of the number {nid}")
        return found

    def disk_of(self, nid: int) -> Disk | None:
        """Return what is in a file, None for a folder."""
        return self._disks.get(nid)

    def image_of(self, nid: int) -> str | None:
        """Return the image that a file comes with, None for a folder."""
        return self._images.get(nid)

    @property
    def image_count(self) -> int:
        """How many images the files come with."""
        return len(set(self._images.values()))

    def child(self, directory: Stat, name: bytes) -> Stat | None:
        """Return the entry *name* of a directory, or None."""
        return self._children.get(directory.ino, {}).get(name)

    def scandir(self, where: Where) -> Iterator[tuple[bytes, Stat]]:
        """Yield (name, Stat) of a directory in byte order."""
        yield from sorted(self._children.get(self.find(where).ino, {}).items())

    def readlink(self, where: Where) -> bytes:
        """Raise FileKindError: there are no links."""
        raise FileKindError(f"{self.find(where).path.decode()} is not a symbolic link")

    def xattrs(self, where: Where) -> dict[bytes, bytes]:  # noqa: ARG002 - none has any
        """Return nothing."""
        return {}

    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read a part of a file."""
        disk = self._disks[stat.ino]
        buffer = bytearray(max(0, min(size, stat.size - offset)))
        disk.read_into(offset, buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Nothing is held."""


class CacheFilesystem(TreeFilesystem):
    """Answers FUSE requests from a tree; what does not come is waited for until *ended* is set, or
    for *give_up_s*.
    """

    def __init__(
        self, tree: CacheTree, ended: threading.Event, give_up_s: float | None = None
    ) -> None:
        super().__init__(tree)
        self._tree = tree
        self._ended = ended
        self._give_up_s = give_up_s
        self.flags = self.flags & ~fuse.InitFlag.NO_OPEN_SUPPORT | fuse.InitFlag.ASYNC_DIO

    def handle(self, request: fuse.Request, scratch: memoryview, /) -> Body:
        """Answer a request."""
        if request.opcode == fuse.Opcode.OPEN:
            flags = fuse.OpenFlag.DIRECT_IO | fuse.OpenFlag.NOFLUSH
            return fuse_reply.encode_open(0, flags)
        if request.opcode == fuse.Opcode.RELEASE:
            return b""
        if request.opcode == fuse.Opcode.READ:
            return self._read_disk(request, scratch)
        return super().handle(request, scratch)

    def quick(self, request: fuse.Request, scratch: memoryview, /) -> Body | None:
        """Answer a read of what is here."""
        if request.opcode != fuse.Opcode.READ:
            return None
        read = fuse.decode_read(request)
        disk = self._tree.disk_of(request.nodeid - _FIRST_NODE)
        size = 0 if disk is None else min(read.size_bytes, disk.size_bytes - read.offset)
        if disk is None or not 0 < size <= len(scratch):
            return None
        view = scratch[:size]
        return view if disk.read_ready(read.offset, view) else None

    def lane_of(self, request: fuse.Request) -> str | None:
        """Return what else a request waits with: all reads of an image, as its registry is silent
        to all of them.
        """
        if request.opcode != fuse.Opcode.READ:
            return None
        return self._tree.image_of(request.nodeid - _FIRST_NODE)

    def _read_disk(self, request: fuse.Request, scratch: memoryview) -> memoryview:
        read = fuse.decode_read(request)
        disk = self._tree.disk_of(request.nodeid - _FIRST_NODE)
        if disk is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        size = max(0, min(read.size_bytes, disk.size_bytes - read.offset))
        if size > len(scratch):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        view = scratch[:size]
        # The kernel takes a short answer for zeros.
        if read_patiently(disk, read.offset, view, self._ended, self._give_up_s) != size:
            raise StoreError("a layer ends before its size")
        return view
