"""Places of all inodes of a tree, and the bytes they consist of (RAFS v6 §1.10-1.15).

Positions count from the root inode on, which the image has at a multiple of the block size.  Inodes
are encoded as they are placed; only directories and very long symbolic links wait, because they
name places that come later.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
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
from lamina.erofs.tree import Node
from lamina.erofs.xattr import encode_xattrs
from lamina.errors import FormatError

_INODE_SIZE = INODE_EXTENDED.size
_FORMAT_PLAIN = 1 | Layout.FLAT_PLAIN << 1
_FORMAT_INLINE = 1 | Layout.FLAT_INLINE << 1
_FORMAT_CHUNKS = 1 | Layout.CHUNK_BASED << 1
_FORMAT_MASK = 0o170000
_REGULAR, _DIRECTORY, _SYMLINK = 0o100000, 0o040000, 0o120000
_WITH_RDEV = frozenset((0o020000, 0o060000, 0o010000))
_TYPES = tuple(FILE_TYPE_OF_FORMAT.get(kind << 12, FileType.UNKNOWN) for kind in range(16))
_NLINK_OFFSET = 44


class _Deferred(NamedTuple):
    """An inode whose bytes can only be known when everything has its place."""

    part: int
    node: Node
    parent: Node
    size: int
    in_blocks: int
    blocks: Sequence[Sequence[bytes]]
    xattrs: bytes
    nlink: int
    ino: int


class Placement:
    """The inodes of the tree under ``root``, whose files are cut at ``chunk_size`` bytes.

    Raises:
        FormatError: names the node that cannot be represented.
    """

    def __init__(self, root: Node, chunk_size: int) -> None:
        self.has_xattrs = False
        self.name_count = 1
        self._chunk_size = chunk_size
        self._chunk_format = _chunk_format(chunk_size)
        self._position = 0
        self._ino = 0
        self._parts: list[bytes] = []
        self._packers: dict[int, Callable[..., bytes]] = {}
        self._nids: dict[int, int] = {id(root): 0}
        self._extra_links: dict[int, int] = {}
        self._deferred: list[_Deferred] = []
        pending = [(root, root)]
        while pending:
            node, parent = pending.pop()
            subdirectories = self._place_directory(node, parent)
            pending.extend((child, node) for child in reversed(subdirectories))

    def nid(self, node: Node) -> int:
        """Return the number that a node of the tree was given."""
        return self._nids[id(node)]

    def emit(self, root_block: int) -> bytes:
        """Return all inodes, then all data blocks; the root inode begins at ``root_block``."""
        area_size = round_up(self._position, BLOCK_SIZE)
        next_block = root_block + area_size // BLOCK_SIZE
        blocks: list[bytes] = []
        for item in self._deferred:
            node, start = item.node, item.in_blocks
            data = node.target if node.children is None else self._directory_data(item)
            kind = _FORMAT_INLINE if start < item.size else _FORMAT_PLAIN
            raw = next_block if start else 0
            tail = item.xattrs + data[start:]
            pack = self._packers.get(len(tail)) or self._packer(len(tail))
            # fmt: off
            self._parts[item.part] = pack(
                kind, _icount(item.xattrs), node.mode, item.size, raw, item.ino,
                node.uid, node.gid, node.mtime, node.mtime_ns, item.nlink, tail)
            # fmt: on
            if start:
                blocks.append(data[:start].ljust(round_up(start, BLOCK_SIZE), b"\0"))
                next_block += len(blocks[-1]) // BLOCK_SIZE
        area = bytearray().join(self._parts)
        for key, extra in self._extra_links.items():
            field = (self._nids[key] - ROOT_NID << NID_SHIFT) + _NLINK_OFFSET
            area[field : field + 4] = (1 + extra).to_bytes(4, "little")
        return b"".join([area.ljust(area_size, b"\0"), *blocks])

    def _place_directory(self, node: Node, parent: Node) -> list[Node]:
        """Place a directory and all of its children but the subdirectories, which are returned."""
        children = node.children
        if children is None or node.mode & _FORMAT_MASK != _DIRECTORY:
            raise FormatError(f"A node of mode {node.mode:#o} stands where a directory must.")
        blocks, size = directory_blocks(sorted_names(children))
        part = self._reserve(node, size)
        xattrs, in_blocks, ino = part[1], part[2], self._ino
        nids, place = self._nids, self._place
        subdirectories: list[Node] = []
        for name in sorted(children):
            child = children[name]
            key = id(child)
            if child.children is not None:
                if key in nids:
                    raise FormatError(f"Directory {name!r} has two names.")
                nids[key] = 0
                subdirectories.append(child)
            elif key in nids:
                self._extra_links[key] = self._extra_links.get(key, 0) + 1
            else:
                try:
                    place(child)
                except (struct.error, FormatError) as error:
                    raise FormatError(f"{name!r} cannot be stored: {error}") from error
        self.name_count += len(children)
        nlink = 2 + len(subdirectories)
        self._deferred.append(
            _Deferred(part[0], node, parent, size, in_blocks, blocks, xattrs, nlink, ino)
        )
        return subdirectories

    def _place(self, node: Node) -> None:
        """Place anything but a directory."""
        kind = node.mode & _FORMAT_MASK
        xattrs = self._xattrs(node) if node.xattrs else b""
        if kind == _REGULAR:
            size, chunks = node.size, node.chunks
            if len(chunks) != -(-size // self._chunk_size) * 8:
                raise FormatError(f"{len(chunks) // 8} chunk indexes for {size} bytes.")
            raw = self._chunk_format
            if size > self._chunk_size:
                raw = self._widest_chunk_format(chunks, size)
            tail = xattrs.ljust(round_up(len(xattrs), 8), b"\0") + chunks if xattrs else chunks
            self._append(node, _FORMAT_CHUNKS, (size, raw), xattrs, tail)
        elif kind == _SYMLINK:
            self._place_symlink(node, xattrs)
        elif kind in FILE_TYPE_OF_FORMAT and kind != _DIRECTORY:
            raw = node.rdev if kind in _WITH_RDEV else 0
            self._append(node, _FORMAT_PLAIN, (0, raw), xattrs, xattrs)
        else:
            raise FormatError(f"Mode {node.mode:#o} is no file type without children.")

    def _place_symlink(self, node: Node, xattrs: bytes) -> None:
        target = node.target
        size = len(target)
        if not 0 < size <= MAX_SYMLINK_SIZE or b"\0" in target:
            raise FormatError(f"A link target of {size} bytes, or with a zero byte.")
        head = _INODE_SIZE + len(xattrs)
        if head + size <= BLOCK_SIZE and size < BLOCK_SIZE:
            self._skip_for_inline(head, size)
            self._append(node, _FORMAT_INLINE, (size, 0), xattrs, xattrs + target)
            return
        part, xattrs, _ = self._reserve(node, size)
        self._deferred.append(_Deferred(part, node, node, size, size, (), xattrs, 1, self._ino))

    def _reserve(self, node: Node, size: int) -> tuple[int, bytes, int]:
        """Place an inode with unknown data; return (part, xattrs, bytes that go into blocks)."""
        xattrs = self._xattrs(node) if node.xattrs else b""
        head = _INODE_SIZE + len(xattrs)
        tail = size % BLOCK_SIZE
        if tail == 0 or head + tail > BLOCK_SIZE:
            tail = 0
        else:
            self._skip_for_inline(head, tail)
        self._nids[id(node)] = ROOT_NID + (self._position >> NID_SHIFT)
        self._ino += 1
        self._parts.append(b"")
        self._position += round_up(head + tail, NID_SIZE)
        return len(self._parts) - 1, xattrs, size - tail

    def _skip_for_inline(self, head: int, tail: int) -> None:
        """Advance until ``tail`` bytes after a header of ``head`` bytes do not cross a block."""
        position = self._position
        start = position + head
        if start % BLOCK_SIZE + tail <= BLOCK_SIZE:
            return
        moved = round_up(round_up(start, BLOCK_SIZE) - head, NID_SIZE)
        if (moved + head) % BLOCK_SIZE + tail > BLOCK_SIZE:
            moved = round_up(position, BLOCK_SIZE)
        self._parts.append(bytes(moved - position))
        self._position = moved

    def _append(
        self, node: Node, kind: int, fields: tuple[int, int], xattrs: bytes, tail: bytes
    ) -> None:
        self._ino = ino = self._ino + 1
        self._nids[id(node)] = ROOT_NID + (self._position >> NID_SHIFT)
        pack = self._packers.get(len(tail)) or self._packer(len(tail))
        size, raw = fields
        # fmt: off
        part = pack(kind, _icount(xattrs) if xattrs else 0, node.mode, size, raw, ino,
                    node.uid, node.gid, node.mtime, node.mtime_ns, 1, tail)
        # fmt: on
        self._parts.append(part)
        self._position += len(part)

    def _packer(self, tail_size: int) -> Callable[..., bytes]:
        """Return what packs an inode and ``tail_size`` bytes that follow it, padded."""
        padding = -(_INODE_SIZE + tail_size) % NID_SIZE
        pack = struct.Struct(f"{INODE_EXTENDED.format}{tail_size}s{padding}x").pack
        self._packers[tail_size] = pack
        return pack

    def _xattrs(self, node: Node) -> bytes:
        self.has_xattrs = True
        return encode_xattrs(node.xattrs)

    def _directory_data(self, item: _Deferred) -> bytes:
        children = item.node.children or {}
        everything = {**children, b".": item.node, b"..": item.parent}
        encoded = []
        for names in item.blocks:
            nodes = [everything[name] for name in names]
            nids = [self._nids[id(node)] for node in nodes]
            types = [_TYPES[node.mode >> 12] for node in nodes]
            encoded.append(encode_block(names, nids, types))
        last = encoded.pop()
        return b"".join([block.ljust(BLOCK_SIZE, b"\0") for block in encoded]) + last

    def _widest_chunk_format(self, chunks: bytes, size: int) -> int:
        """Return the chunk format of a file of several chunks.

        If they lie one after the other in one blob, the format says one chunk for the whole file,
        so that the kernel can read across them; readers that look at every index find the same
        addresses.
        """
        step = self._chunk_size // BLOCK_SIZE
        words = struct.unpack(f"<{len(chunks) // 4}I", chunks)
        first = words[1]
        consecutive = range(first, first + len(words) // 2 * step, step)
        if words[1::2] != tuple(consecutive) or len(set(chunks[2::8])) != 1:
            return self._chunk_format
        return _chunk_format(1 << (size - 1).bit_length())


def _icount(xattrs: bytes) -> int:
    return (len(xattrs) - 12) // 4 + 1 if xattrs else 0


def _chunk_format(chunk_size: int) -> int:
    return CHUNK_FORMAT_INDEXES | (chunk_size // BLOCK_SIZE).bit_length() - 1
