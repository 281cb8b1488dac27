"""The tree of an image over FUSE.

An image never changes, so the kernel may keep names, attributes, folders and file contents as long
as it likes; opening files costs no request at all (``FUSE_NO_OPEN_SUPPORT``).
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Sequence
from typing import Final, Protocol

from lamina.errors import FormatError
from lamina.image.base import Image, Stat
from lamina.serve.fuse_server import CACHE_S, Body, refuse
from lamina.wire import fuse, fuse_reply

_KEPT_FOLDERS: Final = 128
_KEPT_NODES: Final = 4096
_FIRST_NODE: Final = fuse.ROOT_ID + 1


class TreeImage(Image, Protocol):
    """An image that finds a name in a folder without a walk."""

    def child(self, directory: Stat, name: bytes) -> Stat | None:
        """Return the entry ``name`` of ``directory``, None if there is none."""

    def stat_of(self, nid: int) -> Stat:
        """Return an inode by its number.  Raises FormatError if there is none."""


def tree_flags(*, acl: bool) -> fuse.InitFlag:
    """Return what :class:`TreeFilesystem` takes of what the kernel offers."""
    flags = (
        fuse.InitFlag.DO_READDIRPLUS
        | fuse.InitFlag.READDIRPLUS_AUTO
        | fuse.InitFlag.PARALLEL_DIROPS
        | fuse.InitFlag.CACHE_SYMLINKS
        | fuse.InitFlag.NO_OPEN_SUPPORT
        | fuse.InitFlag.NO_OPENDIR_SUPPORT
        | fuse.InitFlag.EXPLICIT_INVAL_DATA
    )
    return flags | fuse.InitFlag.POSIX_ACL if acl else flags


class TreeFilesystem:
    """Answers FUSE requests from ``image``, which stays the caller's.

    A node's number is the image's inode number moved up by two, so that 1 is left for the root:
    nothing has to be remembered, and any process that has the image can answer.

    With ``acl`` the kernel checks POSIX ACLs, as it does on EROFS; only root's mounts can.
    Attributes whose names begin with ``hidden`` are not shown.
    """

    def __init__(self, image: TreeImage, *, acl: bool = False, hidden: bytes | None = None) -> None:
        self._image = image
        self._hidden = hidden
        self._node = functools.lru_cache(_KEPT_NODES)(self._find_node)
        self._entries = functools.lru_cache(_KEPT_FOLDERS)(self._read_folder)
        self._folder_lock = threading.Lock()
        self.flags = tree_flags(acl=acl)
        self._handlers = {
            fuse.Opcode.LOOKUP: self._lookup,
            fuse.Opcode.GETATTR: self._getattr,
            fuse.Opcode.READLINK: self._readlink,
            fuse.Opcode.READ: self._read,
            fuse.Opcode.READDIR: self._readdir,
            fuse.Opcode.READDIRPLUS: self._readdir,
            fuse.Opcode.GETXATTR: self._xattr,
            fuse.Opcode.LISTXATTR: self._xattr,
            fuse.Opcode.STATFS: self._statfs,
        }

    def quick(self, _request: fuse.Request, _scratch: memoryview, /) -> Body | None:
        """Nothing: a part of the tree may have to be fetched."""
        return None

    def handle(self, request: fuse.Request, _scratch: memoryview, /) -> Body:
        """Answer a request."""
        handler = self._handlers.get(request.opcode)  # type: ignore[call-overload]
        if handler is None:
            raise refuse(request)
        body: Body = handler(request)
        return body

    def forget(self, nodeid: int, lookups: int) -> None:
        """Nothing to do: numbers are those of the image."""

    def _find_node(self, nodeid: int) -> Stat:
        if nodeid == fuse.ROOT_ID:
            return self._image.root
        try:
            return self._image.stat_of(nodeid - _FIRST_NODE)
        except FormatError as error:
            raise _error(errno.ESTALE) from error

    def _lookup(self, request: fuse.Request) -> bytes:
        name = fuse.decode_lookup(request)
        child = self._image.child(self._node(request.nodeid), name)
        if child is None:
            return fuse_reply.encode_missing_entry(CACHE_S)
        return self._entry(child)

    def _entry(self, stat: Stat) -> bytes:
        return fuse_reply.encode_entry(stat.ino + _FIRST_NODE, attributes_of(stat), CACHE_S)

    def _getattr(self, request: fuse.Request) -> bytes:
        return fuse_reply.encode_attr(attributes_of(self._node(request.nodeid)), CACHE_S)

    def _readlink(self, request: fuse.Request) -> bytes:
        return self._image.readlink(self._node(request.nodeid))

    def _read(self, request: fuse.Request) -> bytes:
        read = fuse.decode_read(request)
        stat = self._node(request.nodeid)
        if not stat.is_file:
            raise _error(errno.EINVAL)
        data = self._image.pread(stat, read.offset, read.size_bytes)
        # The kernel takes a short answer for the end of the file, or for zeros.
        if len(data) != max(0, min(read.size_bytes, stat.size - read.offset)):
            raise _error(errno.EIO)
        return data

    def _readdir(self, request: fuse.Request) -> bytes:
        read = fuse.decode_read(request)
        plus = request.opcode == fuse.Opcode.READDIRPLUS
        with self._folder_lock:
            entries = self._entries(request.nodeid)
        out = bytearray()
        for cookie, (name, stat) in enumerate(entries[read.offset :], read.offset + 1):
            entry = fuse.DirectoryEntry(stat.ino, cookie, stat.mode, name)
            size = fuse_reply.direntplus_bytes(name) if plus else fuse_reply.dirent_bytes(name)
            if len(out) + size > read.size_bytes:
                break
            if not plus:
                out += fuse_reply.encode_dirent(entry)
            elif name in (b".", b".."):
                out += fuse_reply.encode_direntplus(entry, fuse_reply.encode_missing_entry(0))
            else:
                out += fuse_reply.encode_direntplus(entry, self._entry(stat))
        return bytes(out)

    def _read_folder(self, nodeid: int) -> Sequence[tuple[bytes, Stat]]:
        folder = self._node(nodeid)
        return [(b".", folder), (b"..", folder), *self._image.scandir(folder)]

    def _xattr(self, request: fuse.Request) -> bytes:
        wanted = fuse.decode_xattr(request)
        xattrs = self._image.xattrs(self._node(request.nodeid))
        if self._hidden is not None:
            xattrs = {name: xattrs[name] for name in xattrs if not name.startswith(self._hidden)}
        if request.opcode == fuse.Opcode.GETXATTR:
            if wanted.name not in xattrs:
                raise _error(errno.ENODATA)
            value = xattrs[wanted.name]
        else:
            value = fuse_reply.encode_names(sorted(xattrs))
        if wanted.size_bytes == 0:
            return fuse_reply.encode_xattr_size(len(value))
        if len(value) > wanted.size_bytes:
            raise _error(errno.ERANGE)
        return value

    def _statfs(self, _request: fuse.Request) -> bytes:
        return fuse_reply.encode_statfs(0, 0)


def attributes_of(stat: Stat) -> fuse.Attributes:
    """Return an inode as FUSE describes it."""
    return fuse.Attributes(
        stat.ino,
        stat.size,
        -(-stat.size // 512),
        (stat.mtime, stat.mtime_ns),
        stat.mode,
        stat.nlink,
        stat.uid,
        stat.gid,
        stat.rdev,
    )


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
