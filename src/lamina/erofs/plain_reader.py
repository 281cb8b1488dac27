"""Reader of EROFS file systems of others: what mkfs.erofs makes, uncompressed, in one file.

Trees, links and attributes are as in a bootstrap, which is EROFS too; beside them files may lie in
plain blocks, their last part behind the inode, and attributes may be shared.

Sources: the Linux kernel's ``fs/erofs/erofs_fs.h`` and ``Documentation/filesystems/erofs.rst``.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.erofs.layout import (
    BLOCK_SIZE,
    CHUNK_FORMAT_BITS,
    CHUNK_FORMAT_INDEXES,
    MAGIC,
    NID_SHIFT,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
    XATTR_ENTRY,
    XATTR_HEADER,
    Inode,
    Layout,
    Superblock,
)
from lamina.erofs.reader import Bootstrap
from lamina.erofs.xattr import HEADER, decode_xattrs
from lamina.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MIN_BLOCK_BITS: Final = 9
_MAX_BLOCK_BITS: Final = 12
_FEATURES: Final = 0x3F
"""Compression, chunks, device table, tails and fragments: what they mean for a file, its inode
says.  Behind them are other forms of attributes, of addresses and of metadata.
"""
_COMPRESSED: Final = (1, 3)
_CHUNK_INDEX: Final = Struct("<HHI")
_CHUNK_BLOCK: Final = Struct("<I")
_NO_BLOCK: Final = 0xFFFFFFFF
_SHARED_ID: Final = Struct("<I")


class Part(NamedTuple):
    """A part of a file, in bytes: where it lies in the image, None for zeros."""

    size_bytes: int
    place: int | None


class PlainImage(Bootstrap):
    """An opened file system, of which the regular files are read too; see :class:`Bootstrap`.

    Raises:
        FormatError: it is no EROFS file system, or damaged.
        UnsupportedError: it is one with features that are not known here.
    """

    def __init__(self, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B").toreadonly()
        try:
            superblock = _read_superblock(view)
        except BaseException:
            view.release()
            raise
        self._view = view
        self.block_size = 1 << superblock.block_bits
        self.root_nid = superblock.root_nid
        self.inode_count = superblock.inode_count
        self.size_bytes = len(view)
        self._meta_offset = superblock.meta_block << superblock.block_bits
        self._build_time = superblock.build_time
        self._build_time_ns = superblock.build_time_ns
        self._shared_offset = superblock.xattr_block << superblock.block_bits

    def close(self) -> None:
        """Release the buffer."""
        self._view.release()

    def inode(self, nid: int) -> Inode:
        """Return inode ``nid``.  Raises as :meth:`Bootstrap.inode`, and UnsupportedError for a file
        that is compressed.
        """
        offset = self._meta_offset + (nid << NID_SHIFT)
        if 0 <= offset < self.size_bytes and self._view[offset] >> 1 & 7 in _COMPRESSED:
            raise UnsupportedError(
                "the EROFS layer has files that are compressed inside",
                hint="make it by mkfs.erofs without -z; the layer itself may be compressed by zstd",
            )
        return super().inode(nid)

    @staticmethod
    def _check_inode(nid: int, mode: int, size: int, layout: int, raw: int) -> int:
        if layout == Layout.CHUNK_BASED and not stat.S_ISREG(mode):
            raise FormatError(f"inode {nid}: only a file consists of chunks")
        if stat.S_ISREG(mode):
            layout = Layout.CHUNK_BASED
        return Bootstrap._check_inode(nid, mode, size, layout, raw)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return full name -> value of the extended attributes, shared ones too."""
        if not inode.xattr_size:
            return {}
        start = inode.offset + inode.inode_size
        end = start + inode.xattr_size
        count = XATTR_HEADER.unpack_from(self._view, start)[1]
        inline = start + XATTR_HEADER.size + count * _SHARED_ID.size
        if inline > end:
            raise FormatError(f"inode {inode.nid}: damaged extended attributes")
        area = HEADER + bytes(self._view[inline:end])
        ids = bytes(self._view[start + XATTR_HEADER.size : inline])
        for (number,) in _SHARED_ID.iter_unpack(ids):
            area += self._shared_entry(number, inode.nid)
        return decode_xattrs(area, inode.nid)

    def _shared_entry(self, number: int, nid: int) -> bytes:
        offset = self._shared_offset + 4 * number
        if offset + XATTR_ENTRY.size > self.size_bytes:
            raise FormatError(f"inode {nid}: a shared attribute lies outside the image")
        name_size, _, value_size = XATTR_ENTRY.unpack_from(self._view, offset)
        size = XATTR_ENTRY.size + name_size + value_size
        entry = bytes(self._view[offset : offset + size])
        if len(entry) < size:
            raise FormatError(f"inode {nid}: a shared attribute lies outside the image")
        return entry + bytes(-size % 4)

    def parts(self, inode: Inode) -> Iterator[Part]:
        """Yield where a regular file lies, in its order; what does not lie in the image is a
        FormatError.
        """
        if inode.layout == Layout.CHUNK_BASED:
            yield from self._chunks(inode)
            return
        in_blocks = inode.size - self.tail_size(inode)
        if in_blocks:
            yield self._part(inode, in_blocks, inode.raw * self.block_size)
        if in_blocks < inode.size:
            offset, size = self.data_extent(inode, in_blocks, self.block_size)
            yield Part(size, offset)

    def _chunks(self, inode: Inode) -> Iterator[Part]:
        if inode.raw & ~(CHUNK_FORMAT_BITS | CHUNK_FORMAT_INDEXES):
            raise UnsupportedError(f"inode {inode.nid}: unknown chunk format {inode.raw:#x}")
        entry = _CHUNK_INDEX if inode.raw & CHUNK_FORMAT_INDEXES else _CHUNK_BLOCK
        chunk_size = self.block_size << (inode.raw & CHUNK_FORMAT_BITS)
        count = -(-inode.size // chunk_size)
        # Indexes are aligned to their size, which is that of a map of blocks too.
        start = inode.offset + inode.inode_size + inode.xattr_size + entry.size - 1 & -entry.size
        end = start + count * entry.size
        if end > self.size_bytes:
            raise FormatError(f"inode {inode.nid}: its chunk indexes lie outside the image")
        left = inode.size
        # A copy: a view in the frame of an error would keep the buffer from being closed.
        for fields in entry.iter_unpack(bytes(self._view[start:end])):
            size = min(chunk_size, left)
            left -= size
            if fields[-1] == _NO_BLOCK:
                yield Part(size, None)
            elif len(fields) > 1 and fields[1]:
                raise UnsupportedError("the EROFS layer has data on a device beside it")
            else:
                yield self._part(inode, size, fields[-1] * self.block_size)

    def _part(self, inode: Inode, size: int, place: int) -> Part:
        if place + size > self.size_bytes:
            raise FormatError(f"inode {inode.nid}: its data lies outside the image")
        return Part(size, place)


def _read_superblock(view: memoryview) -> Superblock:
    if len(view) < BLOCK_SIZE // 2 or len(view) < SUPERBLOCK_OFFSET + SUPERBLOCK.size:
        raise FormatError("the layer is too short for an EROFS file system")
    superblock = Superblock(*SUPERBLOCK.unpack_from(view, SUPERBLOCK_OFFSET))
    if superblock.magic != MAGIC:
        raise FormatError("the layer is no EROFS file system")
    bits = superblock.block_bits
    if not _MIN_BLOCK_BITS <= bits <= _MAX_BLOCK_BITS or superblock.directory_block_bits:
        raise UnsupportedError(f"an EROFS file system with blocks of 2^{bits} bytes")
    if superblock.feature_incompat & ~_FEATURES:
        raise UnsupportedError(
            f"an EROFS file system with unknown features ({superblock.feature_incompat:#x})",
            hint="mkfs.erofs without -E options for attributes and 48-bit addresses makes others",
        )
    return superblock
