"""Places of all inodes of a tree, and the bytes they consist of (RAFS v6 §1.10-1.15).

Positions count from the root inode on, which the image has at a multiple of the block size.  Inodes
are encoded as they are placed; only directories and very long symbolic links wait, because they
name places that come later.

A node remembers its number, with that of the layout above it, since a table of all of them would
take more memory than the image.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import count, repeat
from typing import NamedTuple

from lamina.erofs.directory import directory_blocks, encode_block, sorted_names
from lamina.erofs.layout import (
    BLOCK_SIZE,
    CHUNK_FORMAT_INDEXES,
    FILE_TYPE_OF_FORMAT,
    INODE_EXTENDED,
    MAX_SYMLINK_SIZE,
    NID_SHIFT,
    NID_SIZE,
    ROOT_NID,
    FileType,
    Layout,
    round_up,
)
from lamina.erofs.tree import INDEX_BYTES, Child, Fields, InodeTable, Node
from lamina.erofs.xattr import encode_xattrs
from lamina.errors import FormatError

_INODE_SIZE = INODE_EXTENDED.size
_SMALL_FILE_SIZE = round_up(_INODE_SIZE + INDEX_BYTES, NID_SIZE)
_FORMAT_PLAIN = 1 | Layout.FLAT_PLAIN << 1
_FORMAT_INLINE = 1 | Layout.FLAT_INLINE << 1
_FORMAT_CHUNKS = 1 | Layout.CHUNK_BASED << 1
_FORMAT_MASK = 0o170000
_REGULAR, _DIRECTORY, _SYMLINK = 0o100000, 0o040000, 0o120000
_WITH_RDEV = frozenset((0o020000, 0o060000, 0o010000))
_TYPES = tuple(FILE_TYPE_OF_FORMAT.get(kind << 12, FileType.UNKNOWN) for kind in range(16))
_NLINK_OFFSET = 44
_NID_BITS = 32
_NO_ROWS = InodeTable()
_layouts = count(1)


class _Deferred(NamedTuple):
    """An inode whose bytes can only be known when everything has its place."""

    position: int
    node: Node
    parent: Node
    size: int
    in_blocks: int
    blocks: Sequence[Sequence[bytes]]
    xattrs: bytes
    nlink: int
    ino: int


class Placement:
    """The inodes of the tree under ``root``, whose files are cut at ``chunk_size`` bytes, in blocks
    of ``block_size``.

    Raises:
        FormatError: names the node that cannot be represented.
    """

    def __init__(self, root: Node, chunk_size: int, block_size: int = BLOCK_SIZE) -> None:
        self.has_xattrs = False
        self.name_count = 1
        self._chunk_size = chunk_size
        self._block_size = block_size
        self._chunk_format = self._format_of(chunk_size)
        self._layout = next(_layouts) << _NID_BITS
        self._ino = 0
        self._area = bytearray()
        self._packers: dict[int, Callable[..., bytes]] = {}
        self._extra_links: dict[int, int] = {}
        self._deferred: list[_Deferred] = []
        root.place = self._layout
        pending = [(root, root)]
        while pending:
            node, parent = pending.pop()
            subdirectories = self._place_directory(node, parent)
            pending.extend((child, node) for child in reversed(subdirectories))

    def nid(self, node: Node) -> int:
        """Return the number that a node of the tree was given."""
        return node.place - self._layout

    def emit(self, root_block: int) -> bytearray:
        """Return all inodes, then all data blocks, once; the root inode is to begin at
        ``root_block``.
        """
        area, self._area = self._area, bytearray()
        area += bytes(-len(area) % self._block_size)
        for item in self._deferred:
            node, start = item.node, item.in_blocks
            data = node.target if node.children is None else self._directory_data(item)
            kind = _FORMAT_INLINE if start < item.size else _FORMAT_PLAIN
            raw = root_block + len(area) // self._block_size if start else 0
            tail = item.xattrs + data[start:]
            pack = self._packer(len(tail))
            # fmt: off
            inode = pack(
                kind, _icount(item.xattrs), node.mode, item.size, raw, item.ino,
                node.uid, node.gid, node.mtime, node.mtime_ns, item.nlink, tail)
            # fmt: on
            area[item.position : item.position + len(inode)] = inode
            area += data[:start]
            area += bytes(-start % self._block_size)
        for nid, extra in self._extra_links.items():
            field = (nid - ROOT_NID << NID_SHIFT) + _NLINK_OFFSET
            area[field : field + 4] = (1 + extra).to_bytes(4, "little")
        return area

    def _place_directory(self, node: Node, parent: Node) -> list[Node]:
        """Place a directory and all of its children but the subdirectories, which are returned."""
        children, rows = node.entries, node.rows or _NO_ROWS
        if node.children is None or node.mode & _FORMAT_MASK != _DIRECTORY:
            raise FormatError(f"a node of mode {node.mode:#o} stands where a directory must")
        blocks, size = directory_blocks(sorted_names(children), self._block_size)
        position, xattrs, in_blocks = self._reserve(node.xattrs, size)
        ino, layout = self._ino, self._layout
        node.place = layout + ROOT_NID + (position >> NID_SHIFT)
        subdirectories = self._place_children(children, rows)
        self.name_count += len(children)
        nlink = 2 + len(subdirectories)
        if node.packed is not None:
            # Names that are not kept as such are not kept here either.
            blocks = []
        self._deferred.append(
            _Deferred(position, node, parent, size, in_blocks, blocks, xattrs, nlink, ino)
        )
        return subdirectories

    def _place_children(self, children: dict[bytes, Child], rows: InodeTable) -> list[Node]:
        """Place what is in a directory but its subdirectories, which are returned."""
        layout, places, is_small = self._layout, rows.places, rows.is_small
        subdirectories: list[Node] = []
        small: list[int] = []
        for name in sorted(children):
            child = children[name]
            if isinstance(child, int):
                known = places[child]
                if known < layout and is_small[child]:
                    position = len(self._area) + _SMALL_FILE_SIZE * len(small)
                    places[child] = layout + ROOT_NID + (position >> NID_SHIFT)
                    small.append(child)
                elif known < layout:
                    self._put_small(rows, small)
                    places[child] = self._place(name, rows.fields(child))
            elif child.children is not None:
                known = -1
                if child.place >= layout:
                    raise FormatError(f"directory {name!r} has two names")
                child.place = layout
                subdirectories.append(child)
            else:
                known = child.place
                if known < layout:
                    self._put_small(rows, small)
                    child.place = self._place(name, child.fields)
            if known >= layout:
                nid = known - layout
                self._extra_links[nid] = self._extra_links.get(nid, 0) + 1
        self._put_small(rows, small)
        return subdirectories

    def _put_small(self, rows: InodeTable, small: list[int]) -> None:
        """Append files of one chunk without attributes, which have their places, and forget them.

        Most files are such, and all of them at once take half the time.
        """
        ino = self._ino
        self._ino = ino + len(small)
        # fmt: off
        self._area += b"".join(map(
            self._packer(INDEX_BYTES), repeat(_FORMAT_CHUNKS), repeat(0),
            map(rows.modes.__getitem__, small), map(rows.sizes.__getitem__, small),
            repeat(self._chunk_format), range(ino + 1, self._ino + 1),
            map(rows.uids.__getitem__, small), map(rows.gids.__getitem__, small),
            map(rows.mtimes.__getitem__, small), map(rows.mtimes_ns.__getitem__, small),
            repeat(1), map(rows.first_index, small),
        ))
        # fmt: on
        small.clear()

    def _place(self, name: bytes, inode: Fields) -> int:
        """Place anything but a directory; return its place."""
        try:
            position = self._put(inode)
        except (struct.error, FormatError) as error:
            raise FormatError(f"{name!r} cannot be stored: {error}") from error
        return self._layout + ROOT_NID + (position >> NID_SHIFT)

    def _put(self, inode: Fields) -> int:
        kind = inode.mode & _FORMAT_MASK
        xattrs = self._xattrs(inode.xattrs) if inode.xattrs else b""
        if kind == _REGULAR:
            size, chunks = inode.size, inode.chunks
            if len(chunks) != -(-size // self._chunk_size) * 8:
                raise FormatError(f"{len(chunks) // 8} chunk indexes for {size} bytes")
            raw = self._chunk_format
            if size > self._chunk_size:
                raw = self._widest_chunk_format(chunks, size)
            tail = xattrs.ljust(round_up(len(xattrs), 8), b"\0") + chunks if xattrs else chunks
            return self._append(inode, _FORMAT_CHUNKS, (size, raw), xattrs, tail)
        if kind == _SYMLINK:
            return self._put_symlink(inode, xattrs)
        if kind in FILE_TYPE_OF_FORMAT and kind != _DIRECTORY:
            raw = inode.rdev if kind in _WITH_RDEV else 0
            return self._append(inode, _FORMAT_PLAIN, (0, raw), xattrs, xattrs)
        raise FormatError(f"mode {inode.mode:#o} is no file type without children")

    def _put_symlink(self, inode: Fields, xattrs: bytes) -> int:
        target = inode.target
        size = len(target)
        if not 0 < size <= MAX_SYMLINK_SIZE or b"\0" in target:
            raise FormatError(f"a link target of {size} bytes, or with a zero byte")
        head = _INODE_SIZE + len(xattrs)
        if head + size <= self._block_size and size < self._block_size:
            self._skip_for_inline(head, size)
            return self._append(inode, _FORMAT_INLINE, (size, 0), xattrs, xattrs + target)
        position, xattrs, _ = self._reserve(inode.xattrs, size)
        node = Node(*inode)
        self._deferred.append(_Deferred(position, node, node, size, size, (), xattrs, 1, self._ino))
        return position

    def _reserve(self, attributes: dict[bytes, bytes], size: int) -> tuple[int, bytes, int]:
        """Make room for an inode with unknown data; return (position, xattrs, bytes in blocks)."""
        xattrs = self._xattrs(attributes) if attributes else b""
        head = _INODE_SIZE + len(xattrs)
        tail = size % self._block_size
        if tail == 0 or head + tail > self._block_size:
            tail = 0
        else:
            self._skip_for_inline(head, tail)
        position = len(self._area)
        self._ino += 1
        self._area += bytes(round_up(head + tail, NID_SIZE))
        return position, xattrs, size - tail

    def _skip_for_inline(self, head: int, tail: int) -> None:
        """Advance until ``tail`` bytes after a header of ``head`` bytes do not cross a block."""
        position = len(self._area)
        start = position + head
        if start % self._block_size + tail <= self._block_size:
            return
        moved = round_up(round_up(start, self._block_size) - head, NID_SIZE)
        if (moved + head) % self._block_size + tail > self._block_size:
            moved = round_up(position, self._block_size)
        self._area += bytes(moved - position)

    def _append(
        self,
        inode: Fields,
        kind: int,
        fields: tuple[int, int],
        xattrs: bytes,
        tail: bytes | bytearray,
    ) -> int:
        self._ino = ino = self._ino + 1
        position = len(self._area)
        pack = self._packer(len(tail))
        size, raw = fields
        # fmt: off
        self._area += pack(kind, _icount(xattrs) if xattrs else 0, inode.mode, size, raw, ino,
                           inode.uid, inode.gid, inode.mtime, inode.mtime_ns, 1, tail)
        # fmt: on
        return position

    def _packer(self, tail_size: int) -> Callable[..., bytes]:
        """Return what packs an inode and ``tail_size`` bytes that follow it, padded."""
        pack = self._packers.get(tail_size)
        if pack is None:
            padding = -(_INODE_SIZE + tail_size) % NID_SIZE
            pack = struct.Struct(f"{INODE_EXTENDED.format}{tail_size}s{padding}x").pack
            self._packers[tail_size] = pack
        return pack

    def _xattrs(self, attributes: dict[bytes, bytes]) -> bytes:
        self.has_xattrs = True
        return encode_xattrs(attributes)

    def _directory_data(self, item: _Deferred) -> bytes:
        children, rows = item.node.entries, item.node.rows or _NO_ROWS
        everything: dict[bytes, Child] = {**children, b".": item.node, b"..": item.parent}
        layout, places, modes = self._layout, rows.places, rows.modes
        encoded = []
        for names in item.blocks or directory_blocks(sorted_names(children), self._block_size)[0]:
            found = [everything[name] for name in names]
            nids = [(places[c] if isinstance(c, int) else c.place) - layout for c in found]
            types = [_TYPES[(modes[c] if isinstance(c, int) else c.mode) >> 12] for c in found]
            encoded.append(encode_block(names, nids, types))
        last = encoded.pop()
        return b"".join([block.ljust(self._block_size, b"\0") for block in encoded]) + last

    def _widest_chunk_format(self, chunks: bytes | bytearray, size: int) -> int:
        """Return the chunk format of a file of several chunks.

        If they lie one after the other in one blob, the format says one chunk for the whole file,
        so that the kernel can read across them; readers that look at every index find the same
        addresses.
        """
        step = self._chunk_size // self._block_size
        words = struct.unpack(f"<{len(chunks) // 4}I", chunks)
        first = words[1]
        consecutive = range(first, first + len(words) // 2 * step, step)
        if words[1::2] != tuple(consecutive) or len(set(chunks[2::8])) != 1:
            return self._chunk_format
        return self._format_of(1 << (size - 1).bit_length())

    def _format_of(self, chunk_size: int) -> int:
        return CHUNK_FORMAT_INDEXES | (chunk_size // self._block_size).bit_length() - 1


def _icount(xattrs: bytes) -> int:
    return (len(xattrs) - 12) // 4 + 1 if xattrs else 0
