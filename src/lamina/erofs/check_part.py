"""Checks what a kernel may see of a bootstrap before all of it is here.

A kernel reaches nothing but by the directories that it reads, and reads nothing that did not come.
So it is enough to walk from the root over what came: each inode and each block of a directory there
is judged by the rules of the whole, and no directory has two names among them.  What cannot be
judged by a part, how many names an inode has or whether anything overlaps, is no kernel's concern;
the whole is checked before any other page of it is shown.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from itertools import pairwise
from typing import Final

from lamina.erofs.check_devices import check_devices
from lamina.erofs.directory import split_block
from lamina.erofs.layout import (
    CHUNK_FORMAT_BITS,
    FILE_TYPE_OF_FORMAT,
    META_RESERVED,
    NID_SHIFT,
    FileType,
    Inode,
    Layout,
)
from lamina.erofs.partial import NotHereError, PartialBootstrap, parse_chunk_index
from lamina.errors import FormatError

DIRECTORY: Final = int(FileType.DIRECTORY)


def check_part(bootstrap: PartialBootstrap) -> None:
    """Check all that came and can be reached.

    Raises FormatError that names what is wrong, NotHereError if what came cannot be judged alone.
    """
    if bootstrap.root_nid != META_RESERVED >> NID_SHIFT:
        raise FormatError(f"bootstrap: root_nid is {bootstrap.root_nid}; must be 128")
    check_devices(bootstrap)
    root = bootstrap.inode(bootstrap.root_nid)
    if not stat.S_ISDIR(root.mode):
        raise FormatError(f"inode {root.nid}: the root is not a directory")
    _Walk(bootstrap).run(root)


class _Walk:
    def __init__(self, bootstrap: PartialBootstrap) -> None:
        self._bootstrap = bootstrap
        self._directories: set[int] = set()
        self._others: dict[int, int] = {}
        """How many names were seen of what is no directory."""
        self._pending: list[tuple[Inode, int]] = []
        # Nothing overlaps in a sound image; that bounds the work on others.
        self._left_bytes = bootstrap.size_bytes

    def run(self, root: Inode) -> None:
        self._directories.add(root.nid)
        self._pending.append((root, root.nid))
        self._check_attributes(root)
        while self._pending:
            self._check_directory(*self._pending.pop())

    def _spend(self, inode: Inode, size_bytes: int) -> None:
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise FormatError(f"inode {inode.nid}: its data lies on top of what others have")

    def _check_directory(self, directory: Inode, parent_nid: int) -> None:
        nid, dots = directory.nid, {b".": directory.nid, b"..": parent_nid}
        self._spend(directory, directory.size)
        previous = b""
        for index in range(-(-directory.size // self._bootstrap.block_size)):
            try:
                block = self._bootstrap.block(directory, index)
            except NotHereError:
                continue
            names, nids, types = split_block(block, nid)
            for before, after in pairwise([previous, *names]):
                if before >= after:
                    raise FormatError(f"directory {nid}: {after!r} is out of order")
            previous = names[-1]
            for name, child, kind in zip(names, nids, types, strict=True):
                if name not in dots:
                    self._check_entry(child, kind, directory)
                elif dots[name] != child or kind != DIRECTORY:
                    raise FormatError(f"directory {nid}: {name!r} leads to {child}")

    def _check_entry(self, nid: int, kind: int, directory: Inode) -> None:
        if nid in self._directories or (kind == DIRECTORY and nid in self._others):
            raise FormatError(f"directory {directory.nid}: it has directory {nid} once more")
        known = self._others.get(nid, 0)
        if kind == DIRECTORY:
            self._directories.add(nid)
        else:
            self._others[nid] = known + 1
        try:
            inode = self._bootstrap.inode(nid)
        except NotHereError:
            return
        # A kernel that removes more names than an inode says to have complains.
        if inode.nlink <= known:
            raise FormatError(f"inode {nid}: nlink is {inode.nlink}, but it has more names")
        if FILE_TYPE_OF_FORMAT[stat.S_IFMT(inode.mode)] != kind:
            raise FormatError(f"directory {directory.nid}: wrong type of inode {nid}")
        if not known:
            self._check_attributes(inode)
            self._check_data(inode, directory)

    def _check_attributes(self, inode: Inode) -> None:
        start, size = inode.offset + inode.inode_size, inode.xattr_size
        # A kernel would begin with the part that is here, so that is not judged apart.
        if any(self._bootstrap.has(place, 1) for place in (start, start + size - 1) if size):
            self._bootstrap.xattrs(inode)

    def _check_data(self, inode: Inode, parent: Inode) -> None:
        if stat.S_ISDIR(inode.mode):
            self._pending.append((inode, parent.nid))
        elif stat.S_ISREG(inode.mode):
            self._check_chunks(inode)
        elif stat.S_ISLNK(inode.mode):
            with suppress(NotHereError):
                self._bootstrap.readlink(inode)
        elif inode.size or inode.layout != Layout.FLAT_PLAIN:
            raise FormatError(f"inode {inode.nid}: a special file has data")

    def _check_chunks(self, inode: Inode) -> None:
        bootstrap = self._bootstrap
        chunk_size, block_size = bootstrap.chunk_size, bootstrap.block_size
        self._spend(inode, 8 * bootstrap.chunk_count(inode))
        # A kernel takes an index for as much as the format says, we for a chunk.
        step = block_size << (inode.raw & CHUNK_FORMAT_BITS)
        if step < chunk_size:
            raise FormatError(f"inode {inode.nid}: its chunk format is below the chunk size")
        for number, fields in bootstrap.chunks_here(inode):
            index, chunk, address = parse_chunk_index(bootstrap, inode.nid, fields)
            blob = bootstrap.blobs[index]
            size = min(chunk_size, inode.size - number * chunk_size)
            size = max(size, min(step, inode.size - number * step))
            if address * block_size + size > blob.uncompressed_size or chunk >= blob.chunk_count:
                raise FormatError(f"inode {inode.nid}: a chunk lies outside blob {index}")
