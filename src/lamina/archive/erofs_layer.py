"""Layers that are EROFS file systems, read as the tar archives that they might have been.

Such a layer is for overlayfs: a whiteout is a character device 0:0, and a folder that hides the one
below it has an attribute.  In the archive both are files with names, as OCI has them.

Sources: containerd 2.4, ``docs/snapshotters/erofs.md`` and its differ (media types); the kernel's
``Documentation/filesystems/overlayfs.rst``; OCI image specification 1.1, whiteouts.
"""

from __future__ import annotations

import logging
import mmap
import stat
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final, Protocol

from lamina.archive.blocks import Block
from lamina.archive.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Entry,
)
from lamina.archive.tar_writer import END_MARK, encode_entry, padding
from lamina.erofs.layout import Inode
from lamina.erofs.plain_reader import PlainImage
from lamina.errors import FormatError, UnsupportedError

MEDIA_TYPE: Final = "application/vnd.erofs.layer.v1"
ZSTD_MEDIA_TYPE: Final = f"{MEDIA_TYPE}+zstd"

_READ_BYTES: Final = 1 << 20
_ALWAYS_BYTES: Final = 1 << 30
_KINDS: Final = {
    stat.S_IFREG: REGULAR,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK_DEVICE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: FIFO,
}
_OVERLAY: Final = b"trusted.overlay."
_OPAQUE: Final = _OVERLAY + b"opaque"
_ELSEWHERE: Final = (_OVERLAY + b"redirect", _OVERLAY + b"metacopy", _OVERLAY + b"whiteout")
_WHITEOUT: Final = b".wh."
_OPAQUE_NAME: Final = b".wh..wh..opq"
_MOST_DEPTH: Final = 2048
"""Folders below each other: a path is shorter."""
MOST_PLACES: Final = 1 << 22
"""What is remembered of a layer: small chunks that are all the same take no room in it."""
_log = logging.getLogger(__name__)


def is_erofs_layer(media_type: str) -> bool:
    """Tell whether a layer is an EROFS file system."""
    return media_type in (MEDIA_TYPE, ZSTD_MEDIA_TYPE)


class _Stream(Protocol):
    @property
    def compression(self) -> str: ...
    def read(self, size: int, /) -> Block: ...


class ErofsTar:
    """A layer as a tar archive; it has to be closed."""

    def __init__(
        self, layer: _Stream, folder: str, max_bytes: int, *, is_placed: bool = False
    ) -> None:
        """Read the layer to its end, into a file without a name in *folder*; with ``is_placed``
        remember for :meth:`place_in_layer` where its files lie.

        Raises what reading it raises, FormatError, and UnsupportedError for what is compressed
        inside.
        """
        self.compression = layer.compression
        self._done = 0
        self._is_placed = is_placed
        self._starts, self._places = array("Q"), array("q")
        with ExitStack() as stack:
            spool = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            while block := layer.read(_READ_BYTES):
                spool.write(block)
            spool.flush()
            self.size_bytes = spool.tell()
            if not self.size_bytes:
                raise FormatError("the layer is empty, and no EROFS file system")
            # Holes, and chunks of many files, take next to no room: as much as deflate can.
            self._max_bytes = min(max_bytes, (self.size_bytes << 10) + _ALWAYS_BYTES)
            self._map = mmap.mmap(spool.fileno(), 0, prot=mmap.PROT_READ)
            stack.callback(self._map.close)
            self._image = stack.enter_context(PlainImage(self._map))
            self._pieces = self._archive()
            self._kept = stack.pop_all()

    def read(self, _size: int = -1, /) -> bytes:
        """Return the next bytes, however many; b"" at the end."""
        piece = next(self._pieces, b"")
        self._done += len(piece)
        if self._done > self._max_bytes:
            raise FormatError(
                f"the files of the layer have more than the allowed {self._max_bytes} bytes",
                hint="if it is really that large, raise the limit; else it is a bomb",
            )
        return piece

    def close(self) -> None:
        """Let go of the file; may be called again."""
        self._pieces = iter(())
        self._kept.close()

    def place_in_layer(self, offset: int, size_bytes: int) -> int:
        """Return where bytes of the archive that were read, all of one file, lie in the layer.

        Raises UnsupportedError if they do not lie there as they are.
        """
        number = bisect_right(self._starts, offset) - 1
        start, place = self._starts[number], self._places[number]
        end = self._starts[number + 1] if number + 1 < len(self._starts) else self._done
        if place < 0 or offset + size_bytes > end:
            raise UnsupportedError(
                "the EROFS layer has files that do not lie in one place",
                hint="make it by mkfs.erofs -Enoinline_data, or convert the image",
            )
        return place + offset - start

    def _archive(self) -> Iterator[bytes]:
        yield from self._entries()
        yield END_MARK

    def _entries(self) -> Iterator[bytes]:
        image = self._image
        root = image.inode(image.root_nid)
        first_names: dict[int, bytes] = {}
        met = {root.nid}
        yield from self._directory(b"", root)
        stack = [(b"", image.readdir(root))]
        while stack:
            folder, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            path = folder + b"/" + entry.name if folder else entry.name
            inode = image.inode(entry.nid)
            is_folder = stat.S_ISDIR(inode.mode)
            if entry.name.startswith(_WHITEOUT) and not (is_folder and _is_of_aufs(entry.name)):
                shown = path.decode("utf-8", "replace")
                raise UnsupportedError(f"the EROFS layer has {shown}, a mark in other layers")
            if not is_folder:
                yield from self._other(path, inode, first_names)
                continue
            if inode.nid in met or len(stack) > _MOST_DEPTH:
                raise FormatError(f"directory {inode.nid} of the layer has two names")
            met.add(inode.nid)
            yield from self._directory(path, inode)
            stack.append((path, image.readdir(inode)))

    def _directory(self, path: bytes, inode: Inode) -> Iterator[bytes]:
        xattrs = self._image.xattrs(inode)
        yield encode_entry(_entry(path, inode, DIRECTORY, xattrs=_own(xattrs)))
        if xattrs.get(_OPAQUE) == b"y" and path:
            yield _marker(path + b"/" + _OPAQUE_NAME)

    def _other(self, path: bytes, inode: Inode, first_names: dict[int, bytes]) -> Iterator[bytes]:
        """Yield what is no directory."""
        kind = _KINDS.get(stat.S_IFMT(inode.mode))
        if kind == CHARACTER and inode.raw == 0:
            head, slash, name = path.rpartition(b"/")
            yield _marker(head + slash + _WHITEOUT + name)
            return
        if kind is None:
            _log.warning("%s: a socket is left out", path.decode("utf-8", "replace"))
            return
        first = first_names.get(inode.nid)
        if first is not None:
            yield encode_entry(_entry(path, inode, HARD_LINK, first))
            return
        if inode.nlink > 1:
            first_names[inode.nid] = path
        link = self._image.readlink(inode) if kind == SYMLINK else b""
        xattrs = self._image.xattrs(inode)
        yield encode_entry(_entry(path, inode, kind, link, _own(xattrs)))
        if kind == REGULAR and inode.size:
            yield from self._content(inode)

    def _content(self, inode: Inode) -> Iterator[bytes]:
        """Yield a file, and note where in the archive it comes to lie."""
        position = self._done
        following: int | None = None
        for part in self._image.parts(inode):
            place = -1 if part.place is None else part.place
            if place != following:
                self._place(position, place)
            following = place if place < 0 else place + part.size_bytes
            position += part.size_bytes
            for start in range(0, part.size_bytes, _READ_BYTES):
                size = min(_READ_BYTES, part.size_bytes - start)
                yield bytes(size) if place < 0 else self._map[place + start : place + start + size]
        if rest := padding(inode.size):
            yield rest

    def _place(self, position: int, place: int) -> None:
        """Note where bytes of the archive from *position* on lie, up to the next such place."""
        if not self._is_placed:
            return
        if len(self._starts) >= MOST_PLACES:
            raise UnsupportedError(
                f"the files of the EROFS layer lie in more than {MOST_PLACES} places",
                hint="make it by mkfs.erofs without --chunksize, or convert the image",
            )
        self._starts.append(position)
        self._places.append(place)


def _is_of_aufs(name: bytes) -> bool:
    """Tell whether a folder is one of AUFS, which hides nothing and is kept as it is."""
    return name.startswith(_WHITEOUT * 2) and name != _OPAQUE_NAME


def _own(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return attributes without those of overlayfs.  Raises UnsupportedError for a part of a file
    or folder that is in another layer, or the mark of one that shall not be seen.
    """
    if not any(name.startswith(_OVERLAY) for name in xattrs):
        return xattrs
    if any(name in xattrs for name in _ELSEWHERE):
        raise UnsupportedError("the EROFS layer refers to files of other layers")
    return {name: value for name, value in xattrs.items() if not name.startswith(_OVERLAY)}


def _marker(path: bytes) -> bytes:
    return encode_entry(Entry(path, REGULAR, 0o644, 0, 0, 0, 0, 0, b"", 0, 0, {}, 0))


def _entry(
    path: bytes,
    inode: Inode,
    kind: int,
    link: bytes = b"",
    xattrs: dict[bytes, bytes] | None = None,
) -> Entry:
    major = minor = 0
    if kind in (CHARACTER, BLOCK_DEVICE):
        major, minor = inode.raw >> 8 & 0xFFF, inode.raw & 0xFF | inode.raw >> 12 & 0xFFF00
    size = inode.size if kind == REGULAR else 0
    # fmt: off
    return Entry(path, kind, inode.mode & 0o7777, inode.uid, inode.gid, inode.mtime, inode.mtime_ns,
                 size, link, major, minor, xattrs or {}, 0)
    # fmt: on
