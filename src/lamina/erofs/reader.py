"""Lazy reader of a bootstrap: an EROFS tree over any buffer.

Opening decodes the superblocks and the blob table and nothing per file.  Every call decodes just
what it returns, checks it against the size of the buffer, and raises FormatError that names the
inode for anything else.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lamina.erofs.chunk_digests import ChunkDigests, ChunkEntries
from lamina.erofs.directory import block_entries, find_in_blocks, split_block
from lamina.erofs.layout import (
    CHUNK_FORMAT_BITS,
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    INODE_COMPACT,
    INODE_EXTENDED,
    MAX_SYMLINK_SIZE,
    NID_SHIFT,
    XATTR_HEADER,
    ChunkIndex,
    Dirent,
    Inode,
    Layout,
    SuperFlag,
)
from lamina.erofs.superblock import read_header
from lamina.erofs.xattr import decode_xattrs
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

_LAYOUTS = frozenset(Layout)
_MAX_INODE_SIZE = (1 << 63) - 1
_TYPES = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)


class Bootstrap:
    """An opened bootstrap.

    ``buffer`` (bytes, mmap, ...) must stay unchanged while it is open.  ``close`` lets go of it,
    which an mmap needs before it can be closed itself; it is not needed otherwise.

    Raises:
        FormatError: the superblocks, device slots or blob table break a rule of RAFS v6 §1.2-1.8.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._view = memoryview(buffer).cast("B").toreadonly()
        try:
            self.header = read_header(self._view)
        except BaseException:
            self._view.release()
            raise
        extended = self.header.extended
        self.block_size = self.header.block_size
        self.chunk_size = extended.chunk_size
        self.flags = SuperFlag(extended.flags)
        self.compressor = self.header.compressor
        self.digester = self.header.digester
        self.blobs = self.header.blobs
        self.device_ids = tuple(blob.blob_id for blob in self.blobs)
        self.prefetch_nids = self.header.prefetch_nids
        self.root_nid = self.header.superblock.root_nid
        self.inode_count = self.header.superblock.inode_count
        self.size_bytes = len(self._view)
        self._meta_offset = self.header.meta_offset
        self._build_time = self.header.superblock.build_time
        self._build_time_ns = self.header.superblock.build_time_ns
        table = extended.chunk_table_offset, extended.chunk_table_size
        self._chunk_entries = ChunkEntries(self._view, *table, self.blobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the buffer; the object cannot be read any more."""
        self._chunk_entries.close()
        self._view.release()

    @property
    def view(self) -> memoryview:
        """The whole image, read-only."""
        return self._view

    @property
    def chunk_entries(self) -> ChunkEntries:
        """The chunk table of the image."""
        return self._chunk_entries

    def chunk_digests(self, blob_index: int) -> ChunkDigests:
        """Return the digests of the chunks of one blob (0-based index)."""
        if not 0 <= blob_index < len(self.blobs):
            raise FormatError(f"there is no blob {blob_index}; the image has {len(self.blobs)}")
        return ChunkDigests(self._chunk_entries, blob_index)

    def inode(self, nid: int) -> Inode:
        """Return inode ``nid``.

        Raises:
            FormatError: it does not lie inside the image, or its fields contradict each other.
        """
        offset = self._meta_offset + (nid << NID_SHIFT)
        if nid < 0 or offset + INODE_COMPACT.size > self.size_bytes:
            raise FormatError(f"inode {nid} lies outside the image")
        format_bits = self._view[offset]
        layout = format_bits >> 1
        if layout not in _LAYOUTS or self._view[offset + 1]:
            raise FormatError(f"inode {nid}: unknown format {format_bits:#x}")
        if not format_bits & 1:
            return self._compact(nid, offset, layout)
        if offset + INODE_EXTENDED.size > self.size_bytes:
            raise FormatError(f"inode {nid} lies outside the image")
        _, icount, mode, size, raw, ino, uid, gid, mtime, mtime_ns, nlink = (
            INODE_EXTENDED.unpack_from(self._view, offset)
        )
        if mtime_ns >= 1_000_000_000:
            raise FormatError(f"inode {nid}: its mtime has {mtime_ns} nanoseconds")
        xattr_size = XATTR_HEADER.size + 4 * (icount - 1) if icount else 0
        rdev = self._check_inode(nid, mode, size, layout, raw)
        if offset + 64 + xattr_size > self.size_bytes:
            raise FormatError(f"inode {nid}: its extended attributes leave the image")
        # fmt: off
        return Inode(nid, mode, uid, gid, size, mtime, mtime_ns, nlink, rdev, layout, ino, raw,
                     offset, 64, xattr_size)
        # fmt: on

    def _compact(self, nid: int, offset: int, layout: int) -> Inode:
        _, icount, mode, nlink, size, raw, ino, uid, gid = INODE_COMPACT.unpack_from(
            self._view, offset
        )
        xattr_size = XATTR_HEADER.size + 4 * (icount - 1) if icount else 0
        rdev = self._check_inode(nid, mode, size, layout, raw)
        if offset + 32 + xattr_size > self.size_bytes:
            raise FormatError(f"inode {nid}: its extended attributes leave the image")
        mtime, mtime_ns = self._build_time, self._build_time_ns
        if mtime_ns >= 1_000_000_000:
            raise FormatError(f"inode {nid}: the build time has {mtime_ns} nanoseconds")
        # fmt: off
        return Inode(nid, mode, uid, gid, size, mtime, mtime_ns, nlink, rdev, layout, ino, raw,
                     offset, 32, xattr_size)
        # fmt: on

    @staticmethod
    def _check_inode(nid: int, mode: int, size: int, layout: int, raw: int) -> int:
        """Check type against layout; return the device number."""
        kind = mode & 0o170000
        if kind not in _TYPES:
            raise FormatError(f"inode {nid}: mode {mode:#o} has no known file type")
        if size > _MAX_INODE_SIZE:
            raise FormatError(f"inode {nid}: size {size} is impossible")
        if (layout == Layout.CHUNK_BASED) != (kind == stat.S_IFREG):
            raise FormatError(f"inode {nid}: layout {layout} does not fit mode {mode:#o}")
        if kind == stat.S_IFLNK and not 0 < size <= MAX_SYMLINK_SIZE:
            raise FormatError(f"inode {nid}: a symbolic link of {size} bytes")
        return raw if kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO) else 0

    def data_extent(self, inode: Inode, start: int, size: int) -> tuple[int, int]:
        """Return (offset in the image, size) of one block, or less, of a directory or symlink.

        ``start`` is where in the data it begins, a multiple of the block size.
        """
        size = min(size, inode.size - start)
        tail_start = inode.size - self.tail_size(inode)
        if start >= tail_start:
            offset = inode.offset + inode.inode_size + inode.xattr_size
            if offset % self.block_size + size > self.block_size:
                raise FormatError(f"inode {inode.nid}: its inline data crosses a block")
        else:
            offset = inode.raw * self.block_size + start
            size = min(size, tail_start - start)
        if size < 0 or offset + size > self.size_bytes:
            raise FormatError(f"inode {inode.nid}: its data lies outside the image")
        return offset, size

    def tail_size(self, inode: Inode) -> int:
        """Return how much of the data of a directory or symlink follows the inode itself: the last
        block, if the layout says so, be it a full one, as for a kernel.
        """
        if inode.layout != Layout.FLAT_INLINE or not inode.size:
            return 0
        return (inode.size - 1) % self.block_size + 1

    def _directory_block(self, inode: Inode, index: int) -> memoryview:
        offset, size = self.data_extent(inode, index * self.block_size, self.block_size)
        return self._view[offset : offset + size]

    def _directory_block_count(self, inode: Inode) -> int:
        if not stat.S_ISDIR(inode.mode):
            raise FormatError(f"inode {inode.nid} is not a directory")
        if inode.size > self.size_bytes:
            raise FormatError(f"directory {inode.nid} is larger than the image")
        return -(-inode.size // self.block_size)

    def readdir(self, inode: Inode) -> Iterator[Dirent]:
        """Yield the entries of a directory in byte order, without ``.`` and ``..``."""
        for entry in self.entries(inode):
            if entry.name not in (b".", b".."):
                yield entry

    def names(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        """Yield (name, nid) of a directory in byte order, without ``.`` and ``..``."""
        for block in self.directory_blocks(inode):
            names, nids, _ = split_block(block, inode.nid)
            for name, nid in zip(names, nids, strict=True):
                if name not in (b".", b".."):
                    yield name, nid

    def entries(self, inode: Inode) -> Iterator[Dirent]:
        """Yield the entries of a directory as they are stored, ``.`` and ``..`` among them."""
        for block in self.directory_blocks(inode):
            yield from block_entries(block, inode.nid)

    def directory_blocks(self, inode: Inode) -> Iterator[bytes]:
        """Yield the blocks of a directory."""
        for index in range(self._directory_block_count(inode)):
            yield bytes(self._directory_block(inode, index))

    def lookup(self, inode: Inode, name: bytes) -> int | None:
        """Return the nid of ``name`` in a directory (also ``.`` and ``..``), or None; O(log n)."""
        count = self._directory_block_count(inode)
        return find_in_blocks(
            lambda index: self._directory_block(inode, index), count, name, inode.nid
        )

    def readlink(self, inode: Inode) -> bytes:
        """Return the target of a symbolic link."""
        if not stat.S_ISLNK(inode.mode):
            raise FormatError(f"inode {inode.nid} is not a symbolic link")
        target = b""
        while len(target) < inode.size:
            offset, size = self.data_extent(inode, len(target), self.block_size)
            target += bytes(self._view[offset : offset + size])
        if b"\0" in target:
            raise FormatError(f"inode {inode.nid}: the target of the link contains a zero byte")
        return target

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return full name -> value of the extended attributes."""
        if not inode.xattr_size:
            return {}
        start = inode.offset + inode.inode_size
        return decode_xattrs(bytes(self._view[start : start + inode.xattr_size]), inode.nid)

    def chunk_count(self, inode: Inode) -> int:
        """Return the number of chunks of a regular file, ``ceil(size / chunk_size)``."""
        return -(-inode.size // self.chunk_size)

    def chunk_array(self, inode: Inode) -> memoryview:
        """Return the raw 8-byte chunk indexes of a regular file."""
        if not stat.S_ISREG(inode.mode):
            raise FormatError(f"inode {inode.nid} is not a regular file")
        if inode.raw & ~CHUNK_FORMAT_BITS != CHUNK_FORMAT_INDEXES:
            raise FormatError(f"inode {inode.nid}: unknown chunk format {inode.raw:#x}")
        start = inode.offset + inode.inode_size + inode.xattr_size + 7 & -8
        end = start + CHUNK_INDEX.size * self.chunk_count(inode)
        if end > self.size_bytes:
            raise FormatError(f"inode {inode.nid}: its chunk indexes lie outside the image")
        return self._view[start:end]

    def chunks(
        self, inode: Inode, first: int = 0, count: int | None = None
    ) -> Iterator[ChunkIndex]:
        """Yield the chunk indexes of a regular file, ``count`` of them from number ``first``."""
        array = self.chunk_array(inode)
        last = None if count is None else (first + count) * CHUNK_INDEX.size
        for low, device, high, address in CHUNK_INDEX.iter_unpack(
            array[first * CHUNK_INDEX.size : last]
        ):
            if not 0 < device <= len(self.blobs):
                raise FormatError(f"inode {inode.nid}: a chunk lies on device {device}, not there")
            yield ChunkIndex(device - 1, low | high << 16, address)
