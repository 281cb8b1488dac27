"""Verifies the tree of a bootstrap: directories, inodes, and where the chunks of files are."""

from __future__ import annotations

import stat

from lamina.erofs.layout import (
    CHUNK_FORMAT_BITS,
    FILE_TYPE_OF_FORMAT,
    FileType,
    Inode,
    Layout,
    SuperFlag,
)
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError

ChunkPlaces = dict[int, tuple[int, int]]


class TreeCheck:
    """One walk over the tree.

    Afterwards ``names`` has the number of names of each inode, ``regions`` the (start, end,
    description) of all that belongs to inodes.
    """

    def __init__(self, bootstrap: Bootstrap, places: ChunkPlaces) -> None:
        self.names: dict[int, int] = {bootstrap.root_nid: 1}
        self.name_count = 1
        self.has_xattrs = False
        self.regions: list[tuple[int, int, str]] = []
        self._bootstrap = bootstrap
        self._places = places
        self._tarfs = bool(bootstrap.flags & SuperFlag.TARFS_MODE)
        self._claimed = 0
        self._nlinks: dict[int, int] = {}
        self._types: dict[int, int] = {}

    def run(self) -> None:
        """Walk from the root; raises FormatError that names the inode at fault."""
        root = self._bootstrap.inode(self._bootstrap.root_nid)
        if not stat.S_ISDIR(root.mode):
            raise FormatError(f"Inode {root.nid}: the root is not a directory.")
        self._claim_inode(root)
        pending = [(root, root.nid)]
        while pending:
            directory, parent_nid = pending.pop()
            children = self._check_directory(directory, parent_nid)
            pending.extend((child, directory.nid) for child in children)
        for nid, nlink in self._nlinks.items():
            if nlink != self.names[nid]:
                raise FormatError(
                    f"Inode {nid}: nlink is {nlink}, but it has {self.names[nid]} names."
                )

    def _check_directory(self, directory: Inode, parent_nid: int) -> list[Inode]:
        nid = directory.nid
        previous = b""
        dots = {b".": nid, b"..": parent_nid}
        subdirectories = []
        for entry in self._bootstrap.entries(directory):
            if entry.name <= previous:
                raise FormatError(f"Directory {nid}: {entry.name!r} is out of order.")
            previous = entry.name
            if entry.name in dots:
                if dots.pop(entry.name) != entry.nid or entry.file_type != FileType.DIRECTORY:
                    raise FormatError(f"Directory {nid}: {entry.name!r} leads to {entry.nid}.")
                continue
            self.name_count += 1
            child = self._check_entry(entry.nid, entry.file_type, directory)
            if child is not None:
                subdirectories.append(child)
        if dots:
            raise FormatError(f"Directory {nid}: it has no entry {min(dots)!r}.")
        if directory.nlink != 2 + len(subdirectories):
            raise FormatError(
                f"Directory {nid}: nlink is {directory.nlink}, not {2 + len(subdirectories)}."
            )
        return subdirectories

    def _check_entry(self, nid: int, file_type: int, directory: Inode) -> Inode | None:
        """Check what an entry leads to; return it if it is a directory."""
        if nid in self.names:
            if self._types.get(nid, FileType.DIRECTORY) == FileType.DIRECTORY:
                raise FormatError(f"Directory {directory.nid}: it has directory {nid} once more.")
            if self._types[nid] != file_type:
                raise FormatError(f"Directory {directory.nid}: wrong type of inode {nid}.")
            self.names[nid] += 1
            return None
        inode = self._bootstrap.inode(nid)
        if FILE_TYPE_OF_FORMAT[stat.S_IFMT(inode.mode)] != file_type:
            raise FormatError(f"Directory {directory.nid}: wrong type of inode {nid}.")
        self.names[nid] = 1
        self._types[nid] = file_type
        special = file_type not in (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK)
        if special and (inode.size or inode.layout != Layout.FLAT_PLAIN):
            raise FormatError(f"Inode {nid}: a special file has data.")
        self._claim_inode(inode)
        if file_type == FileType.DIRECTORY:
            return inode
        self._nlinks[nid] = inode.nlink
        if file_type == FileType.REGULAR:
            self._check_chunks(inode)
        elif file_type == FileType.SYMLINK:
            self._bootstrap.readlink(inode)
        return None

    def _claim_inode(self, inode: Inode) -> None:
        """Note what an inode occupies, and check its extended attributes."""
        bootstrap = self._bootstrap
        if inode.xattr_size:
            self.has_xattrs = True
            bootstrap.xattrs(inode)
        end = inode.offset + inode.inode_size + inode.xattr_size
        if inode.layout == Layout.CHUNK_BASED:
            size = len(bootstrap.chunk_array(inode))
            end = (end + 7 & -8) + size if size else end
        else:
            tail = inode.size % bootstrap.block_size if inode.layout == Layout.FLAT_INLINE else 0
            end += tail
            in_blocks = inode.size - tail
            if in_blocks:
                start = inode.raw * bootstrap.block_size
                self._claim(start, start + in_blocks, f"data of inode {inode.nid}")
        self._claim(inode.offset, end, f"inode {inode.nid}")

    def _claim(self, start: int, end: int, name: str) -> None:
        self._claimed += end - start
        if end > self._bootstrap.size_bytes or self._claimed > self._bootstrap.size_bytes:
            raise FormatError(f"Bootstrap: {name} leaves the image or overlaps something.")
        self.regions.append((start, end, name))

    def _check_chunks(self, inode: Inode) -> None:
        bootstrap = self._bootstrap
        chunk_size = bootstrap.chunk_size
        encoded_size = bootstrap.block_size << (inode.raw & CHUNK_FORMAT_BITS)
        if encoded_size < chunk_size:
            raise FormatError(f"Inode {inode.nid}: its chunk format is below the chunk size.")
        rest = inode.size
        expected: tuple[int, int] | None = None
        for chunk in bootstrap.chunks(inode):
            size = min(chunk_size, rest)
            rest -= size
            offset = chunk.block_address * bootstrap.block_size
            blob = bootstrap.blobs[chunk.blob_index]
            if offset + size > blob.uncompressed_size or chunk.chunk_index >= blob.chunk_count:
                raise FormatError(f"Inode {inode.nid}: a chunk lies outside blob {blob.index}.")
            key = chunk.blob_index << 32 | chunk.chunk_index
            if not self._tarfs and self._places.get(key) != (offset, size):
                raise FormatError(
                    f"Inode {inode.nid}: chunk {chunk.chunk_index} of blob {blob.index} "
                    "is not in the chunk table with this place and size."
                )
            if encoded_size > chunk_size and expected not in (None, (blob.index, offset)):
                raise FormatError(f"Inode {inode.nid}: its chunk format skips chunk addresses.")
            expected = blob.index, offset + chunk_size
