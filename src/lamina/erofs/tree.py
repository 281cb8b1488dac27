"""The file tree that a bootstrap is written from: made by the merge, laid out by the writer.

Directories are objects.  What is in them may be objects too, or rows of a table: an object with its
numbers takes five times as much memory as a row, and an image has a million of them.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

_WITH_DEVICE = frozenset((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO))
INDEX_BYTES = 8
"""Of an EROFS chunk index."""
DEVICE_BYTE = 2
"""Where it has the device."""
_NOTHING: dict[bytes, Child] = {}
"""All children of directories that have nothing but packed rows."""


class Fields(NamedTuple):
    """What an inode says, as :class:`Node` has it."""

    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    rdev: int
    target: bytes
    chunks: bytes | bytearray
    xattrs: dict[bytes, bytes]


@dataclass(slots=True)
class Node:
    """One inode; its names are the keys in its parents, so a hard link is the same Node twice.

    ``rdev`` is in the kernel's "new" encoding (spec of EROFS ``i_u``); ``xattrs`` maps full names
    (``b"user.x"``) to values; ``chunks`` are the 8-byte EROFS chunk indexes of a regular file,
    ready to be stored (RAFS v6 §1.11), ``ceil(size / chunk_size)`` of them.  A child that is a
    number is a row of ``rows``; ``packed`` has those that are not among the ``children`` for now.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    chunks: bytes | bytearray = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Child] | None = None
    rows: InodeTable | None = None
    packed: PackedRows | None = None
    place: int = field(default=0, compare=False, repr=False)
    """Where the layout that was made last has it, see :mod:`lamina.erofs.placement`."""

    @property
    def fields(self) -> Fields:
        """Return what the inode says."""
        # fmt: off
        return Fields(self.mode, self.uid, self.gid, self.mtime, self.mtime_ns, self.size,
                      self.rdev, self.target, self.chunks, self.xattrs)
        # fmt: on

    @property
    def entries(self) -> dict[bytes, Child]:
        """Return all that is in a directory, which is not to be changed."""
        children = self.children or {}
        return children if self.packed is None else {**children, **self.packed.entries()}

    def unpack(self) -> None:
        """Have all that is in a directory among its children, so that it can be changed."""
        if self.packed is not None:
            self.children, self.packed = self.entries, None

    def child(self, name: bytes) -> Node | None:
        """Return the child of a name as :meth:`node` does, or None."""
        found = self.entries.get(name)
        return found if found is None else self.node(found)

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Yield (relative path, node), parents first, names in byte order."""
        for here, parent, child in self.walk_children(path):
            yield here, parent.node(child)

    def walk_children(self, path: bytes = b"") -> Iterator[tuple[bytes, Node, Child]]:
        """Yield (relative path, parent, child) as :meth:`walk`; the root is its own parent."""
        stack: list[tuple[bytes, Node, Child]] = [(path, self, self)]
        while stack:
            here, parent, child = stack.pop()
            yield here, parent, child
            if isinstance(child, int):
                continue
            entries = child.entries
            for name in sorted(entries, reverse=True):
                below = here + b"/" + name if here else name
                stack.append((below, child, entries[name]))

    def rows_below(self) -> Iterator[int]:
        """Yield the rows of a tree, in any order."""
        stack = [self]
        while stack:
            node = stack.pop()
            if node.packed is not None:
                yield from node.packed.rows
            for child in (node.children or {}).values():
                if isinstance(child, int):
                    yield child
                else:
                    stack.append(child)

    def node(self, child: Child) -> Node:
        """Return a child as an object; one in a row is made for the call."""
        if isinstance(child, Node):
            return child
        assert self.rows is not None
        return self.rows.node(child)


Child: TypeAlias = Node | int
"""An inode, or the row that has it."""


class PackedRows(NamedTuple):
    """Names of rows, with a slash between them: an eighth of what a dictionary of them takes."""

    names: bytes
    rows: array[int]

    def entries(self) -> dict[bytes, Child]:
        """Return names and rows as a directory has them."""
        return dict(zip(self.names.split(b"/"), self.rows, strict=True))


def packed_trees(*roots: Node) -> list[Node]:
    """Return copies of trees, which may share directories, with the rows in all of them packed.

    All of what is copied can be freed, down to the pages of memory that directories share with
    names.
    """
    known: dict[int, Node] = {}
    copies = [replace(root) for root in roots]
    stack = copies[:]
    while stack:
        node = stack.pop()
        children = node.children or {}
        rows = {name: child for name, child in children.items() if isinstance(child, int)}
        if rows:
            node.packed = PackedRows(b"/".join(rows), array("I", rows.values()))
        below = [(name, child) for name, child in children.items() if isinstance(child, Node)]
        node.children = _NOTHING if node.packed is not None and not below else {}
        for name, child in below:
            copy = child
            if child.children is not None:
                copy = known.get(id(child)) or replace(child)
                if id(child) not in known:
                    known[id(child)] = copy
                    numbers = child.mode, child.uid, child.gid, child.mtime, child.mtime_ns
                    # As objects of their own.
                    copy.mode, copy.uid, copy.gid, copy.mtime, copy.mtime_ns = array("q", numbers)
                    stack.append(copy)
            node.children[bytes(memoryview(name))] = copy
    return copies


class InodeTable:
    """Inodes that are no directories, a row of numbers each: 47 bytes, and 8 for each chunk.

    ``extras`` has the first chunk of a regular file among all in the table, the number of a
    symbolic link's target, or the device number.  Names, and links to one inode, are in the tree.
    """

    def __init__(self, chunk_size: int = 1) -> None:
        self.chunk_size = chunk_size
        self.modes = array("H")
        self.uids, self.gids = array("I"), array("I")
        self.mtimes, self.mtimes_ns = array("q"), array("I")
        self.sizes = array("Q")
        self.extras = array("I")
        self.places = array("Q")
        """As :attr:`Node.place`."""
        self.is_small = bytearray()
        """Whether a row is a regular file of one chunk, without extended attributes; of a row that
        is nothing it may say so.
        """
        self._attributes = array("I")
        self._sets: list[dict[bytes, bytes]] = [{}]
        self._numbers: dict[tuple[tuple[bytes, bytes], ...], int] = {(): 0}
        self._targets: list[bytes] = []
        self._indexes = bytearray()

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.modes)

    @property
    def chunk_count(self) -> int:
        """Return the number of chunks."""
        return len(self._indexes) // INDEX_BYTES

    def extend(self, columns: Sequence[Iterable[int]], first_chunks: Iterable[int]) -> int:
        """Append rows, regular files or what is made something else afterwards, and return the
        number of the first; ``columns`` are modes, users, groups, seconds and nanoseconds of the
        times, and sizes.
        """
        first, limit = len(self.modes), self.chunk_size
        modes, uids, gids, mtimes, mtimes_ns, sizes = columns
        self.modes.extend(iter(modes))
        self.uids.extend(iter(uids))
        self.gids.extend(iter(gids))
        self.mtimes.extend(iter(mtimes))
        self.mtimes_ns.extend(iter(mtimes_ns))
        self.sizes.extend(iter(sizes))
        self.extras.extend(first_chunks)
        count = len(self.modes) - first
        self.places.frombytes(bytes(self.places.itemsize * count))
        self._attributes.frombytes(bytes(self._attributes.itemsize * count))
        self.is_small += bytes([0 < size <= limit for size in self.sizes[first:]])
        return first

    def make_link(self, row: int, mode: int, target: bytes) -> None:
        """Make a symbolic link of a row."""
        self.modes[row], self.sizes[row], self.extras[row] = mode, len(target), len(self._targets)
        self._targets.append(target)
        self.is_small[row] = False

    def make_special(self, row: int, mode: int, rdev: int) -> None:
        """Make a device, a pipe, or an empty file of a row."""
        self.modes[row], self.sizes[row], self.extras[row] = mode, 0, rdev
        self.is_small[row] = False

    def describe(self, row: int, mode: int, owner: tuple[int, int], time: tuple[int, int]) -> None:
        """Give a row another mode, owner and time."""
        self.modes[row] = mode
        self.uids[row], self.gids[row] = owner
        self.mtimes[row], self.mtimes_ns[row] = time

    def xattrs(self, row: int) -> dict[bytes, bytes]:
        """Return the extended attributes of a row, which are not to be changed."""
        return self._sets[self._attributes[row]]

    def set_xattrs(self, row: int, xattrs: dict[bytes, bytes]) -> None:
        """Give a row other extended attributes."""
        self._attributes[row] = self._number(xattrs)
        self.is_small[row] = False

    def target(self, row: int) -> bytes:
        """Return the target of a symbolic link, b"" of anything else."""
        return self._targets[self.extras[row]] if stat.S_ISLNK(self.modes[row]) else b""

    def chunks(self, row: int) -> bytearray:
        """Return the chunk indexes of a regular file."""
        start = self.extras[row] * INDEX_BYTES
        return self._indexes[start : start + -(-self.sizes[row] // self.chunk_size) * INDEX_BYTES]

    def first_index(self, row: int) -> bytearray:
        """Return the index of the first chunk of a regular file."""
        start = self.extras[row] * INDEX_BYTES
        return self._indexes[start : start + INDEX_BYTES]

    def set_chunks(self, first: int, indexes: bytes) -> None:
        """Set the chunk indexes from the chunk ``first`` on."""
        start = first * INDEX_BYTES
        self._indexes[start : start + len(indexes)] = indexes

    def devices(self, rows: Iterable[int]) -> set[int]:
        """Return the device bytes (blob index + 1) of all chunk indexes of rows."""
        found: set[int] = set()
        for row in rows:
            if self.is_small[row]:
                found.add(self._indexes[self.extras[row] * INDEX_BYTES + DEVICE_BYTE])
            elif stat.S_ISREG(self.modes[row]):
                found.update(self.chunks(row)[DEVICE_BYTE::INDEX_BYTES])
        return found

    def renumber(self, devices: dict[int, int]) -> None:
        """Give all chunk indexes other device bytes."""
        table = bytes(devices.get(device, 0) for device in range(256))
        changed = self._indexes[DEVICE_BYTE::INDEX_BYTES].translate(table)
        self._indexes[DEVICE_BYTE::INDEX_BYTES] = changed

    def fields(self, row: int) -> Fields:
        """Return what the inode of a row says."""
        mode = self.modes[row]
        kind = stat.S_IFMT(mode)
        # fmt: off
        return Fields(
            mode, self.uids[row], self.gids[row], self.mtimes[row], self.mtimes_ns[row],
            self.sizes[row], self.extras[row] if kind in _WITH_DEVICE else 0,
            self._targets[self.extras[row]] if kind == stat.S_IFLNK else b"",
            self.chunks(row) if kind == stat.S_IFREG else b"",
            self._sets[self._attributes[row]],
        )
        # fmt: on

    def node(self, row: int) -> Node:
        """Return an object that says the same."""
        made = Node(*self.fields(row))
        made.place = self.places[row]
        return made

    def _number(self, xattrs: dict[bytes, bytes]) -> int:
        key = tuple(xattrs.items())
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._sets)
            self._sets.append(xattrs)
        return number
