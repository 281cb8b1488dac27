"""The tree that one layer describes by itself, before it is laid over the layers below.

Entries take effect in the order of the archive.  The parent of a path is resolved inside this tree,
symbolic links of the layer included, with its root as the ceiling, so nothing can be placed
outside; what is missing on the way is made.  Links of lower layers are not followed, because a
layer is unpacked into a folder of its own where overlayfs puts them together.

Sources: OCI image specification 1.1, "Image Layer Filesystem Changeset"; behaviour of containerd
1.6 and 2.4 with overlayfs (docs/adr/0015).
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lamina.archive.tar import MAX_PATH_BYTES
from lamina.build.budget import Budget, Share
from lamina.build.scan import NO_XATTRS
from lamina.erofs.tree import Child, InodeTable, Node
from lamina.errors import FormatError

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
IMPLIED_DIRECTORY_MODE = stat.S_IFDIR | 0o755
MAX_LINK_HOPS = 255
MAX_PLACES = 1024
"""How many folders are found without a search, since they were used lately."""
MAX_STEPS = 8192
"""Most components looked at for one path, those of link targets included."""


@dataclass(slots=True)
class Directory(Node):
    """A directory of a layer, and what it does to a lower one in its place: whether it hides all of
    it, which names it hides (``hidden``), and whether its metadata is left alone because no entry
    describes it.
    """

    hidden: set[bytes] | None = None
    is_opaque: bool = False
    is_implied: bool = True
    has_borrowed: bool = False
    """Whether files of lower layers are in it, or were."""


class Place(NamedTuple):
    """A directory of a tree and its path without symbolic links."""

    node: Node
    path: bytes


def new_directory(rows: InodeTable) -> Node:
    """Return an empty directory as one that no entry describes: root's, 0755, from 1970."""
    return Node(IMPLIED_DIRECTORY_MODE, xattrs=NO_XATTRS, children={}, rows=rows)


def copy_metadata(source: Node, target: Node) -> None:
    """Give a node the mode, owner, times and extended attributes of another."""
    target.mode, target.uid, target.gid = source.mode, source.uid, source.gid
    target.mtime, target.mtime_ns, target.xattrs = source.mtime, source.mtime_ns, source.xattrs


def is_marker(name: bytes) -> bool:
    """Tell whether the name of an entry is that of a whiteout or opaque marker."""
    return name.startswith(WHITEOUT_PREFIX)


class OwnTree:
    """The tree of one layer alone.

    Markers are in it by their names, as empty files.  Nothing lies below the ``is_lowest`` layer,
    so its whiteouts take away what the layer itself has brought before them.
    """

    def __init__(
        self, rows: InodeTable, *, is_lowest: bool = False, budget: Share | None = None
    ) -> None:
        """The rows of the layer follow those of lower ones in ``rows``.  Count what no entry
        describes in ``budget``.
        """
        self._rows = rows
        self._first_row = len(rows)
        self.root = self._new_directory()
        self._budget = budget or Budget().share()
        self._is_lowest = is_lowest
        self._places: dict[bytes, Directory] = {}
        self._borrowed: list[tuple[Directory, bytes, int]] = []

    def describe_root(self, mtime: int, mtime_ns: int) -> None:
        """Take the time of the root from its entry; containerd passes over all that it says."""
        self.root.mtime, self.root.mtime_ns = mtime, mtime_ns
        self.root.is_implied = False

    def put(self, head: bytes, name: bytes, row: int) -> None:
        """Put a row into the directory at ``head``; what is usual of :meth:`insert`."""
        directory = self._places.get(head) or self._directory(head)
        assert directory.children is not None
        if directory.hidden is None and name not in directory.children:
            directory.children[name] = row
        else:
            self.insert(head + b"/" + name if head else name, row)

    def insert(self, path: bytes, child: Child) -> None:
        """Put a row, or a directory, at a path; a directory over a directory only gives it its
        metadata.

        Raises FormatError if the way there leads through a file.
        """
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        children = directory.children
        assert children is not None
        there = children.get(name)
        if there is None:
            # The directory that comes after its own whiteout is laid over what it has hidden.
            if directory.hidden is not None:
                directory.hidden.discard(name)
        elif isinstance(there, Directory):
            if isinstance(child, Node):
                copy_metadata(child, there)
                there.is_implied = False
                return
            self._places.clear()
        elif isinstance(there, int) and self._rows.target(there):
            self._places.clear()
        if isinstance(child, Node):
            children[name] = made = self._new_directory()
            copy_metadata(child, made)
            made.is_implied = False
        else:
            children[name] = child

    def hide(self, path: bytes, marker: int) -> None:
        """Apply a whiteout or opaque marker and keep it, a row.

        Raises FormatError for a whiteout of no name, or below a file.
        """
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        children = directory.children
        assert children is not None
        if name == OPAQUE_MARKER:
            directory.is_opaque = True
        else:
            hidden = name[len(WHITEOUT_PREFIX) :]
            if hidden in (b"", b".", b".."):
                raise FormatError(
                    f"the whiteout {shown_path(path)} names nothing that could be hidden"
                )
            directory.hidden = directory.hidden or set()
            directory.hidden.add(hidden)
            if self._is_lowest and not is_marker(hidden) and children.pop(hidden, None) is not None:
                self._places.clear()
        if not isinstance(children.get(name), Directory):
            children[name] = marker

    def find(self, path: bytes) -> tuple[Child | None, bytes]:
        """Return what the layer has at a path, and that path without the links of the layer."""
        head, _, name = path.rpartition(b"/")
        place = resolve(self.root, head, self._budget)
        if place is None or not path:
            return None, path
        assert place.node.children is not None
        child = place.node.children.get(name)
        if is_marker(name) and not isinstance(child, Node):
            child = None
        return child, place.path + b"/" + name if place.path else name

    def borrow(self, path: bytes, row: int) -> None:
        """Put a row of a lower layer at a path, until :meth:`adopt`."""
        self.insert(path, row)
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        directory.has_borrowed = True
        self._borrowed.append((directory, name, row))

    def is_borrowed(self, row: int) -> bool:
        """Tell whether a row is one of a lower layer."""
        return row < self._first_row

    def adopt(self, make: Callable[[Node], Node]) -> None:
        """Put nodes of this layer in the places of rows borrowed from lower ones."""
        made: dict[int, Node] = {}
        for directory, name, row in self._borrowed:
            assert directory.children is not None
            if directory.children.get(name) == row:
                if row not in made:
                    made[row] = make(self._rows.node(row))
                directory.children[name] = made[row]

    def _directory(self, path: bytes) -> Directory:
        found = self._places.get(path)
        if found is None:
            place = resolve(self.root, path, self._budget, make=self._implied_directory)
            assert place is not None
            assert isinstance(place.node, Directory)
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            found = self._places[path] = place.node
        return found

    def _implied_directory(self) -> Directory:
        # One name may imply two thousand.
        self._budget.add(1, 0, 1)
        return self._new_directory()

    def _new_directory(self) -> Directory:
        return Directory(IMPLIED_DIRECTORY_MODE, xattrs=NO_XATTRS, children={}, rows=self._rows)


def resolve(
    root: Node, path: bytes, budget: Share, *, make: Callable[[], Node] | None = None
) -> Place | None:
    """Resolve a directory path inside a tree, its symbolic links included; None if it is not there.

    What links lead through is counted in ``budget``.  ``make`` makes what is missing on the way.
    Raises UnsupportedError if the budget is spent, FormatError for a path that is too deep or
    goes through too many links, and with ``make`` for one that goes through a file.
    """
    # Name, directory, and length of its path, to which links add what no entry has.
    stack: list[tuple[bytes, Node, int]] = [(b"", root, 0)]
    todo = path.split(b"/")[::-1] if path else []
    hops = steps = 0
    while todo:
        part = todo.pop()
        steps += 1
        if steps > MAX_STEPS or hops > MAX_LINK_HOPS:
            raise FormatError(f"the path {shown_path(path)} in a layer goes through too many links")
        if part == b"..":
            del stack[max(1, len(stack) - 1) :]
        if part in (b"", b".", b".."):
            continue
        child = _step(stack[-1][1], part, path, make)
        if child is None:
            return None
        if isinstance(child, bytes):
            hops += 1
            if child.startswith(b"/"):
                del stack[1:]
            parts = child.split(b"/")[::-1]
            budget.follow(len(parts))
            todo += parts
            continue
        path_bytes = stack[-1][2] + len(part) + 1
        if path_bytes > MAX_PATH_BYTES:
            raise FormatError(f"the path {shown_path(path)} in a layer is deeper than any can be")
        stack.append((part, child, path_bytes))
    return Place(stack[-1][1], b"/".join([name for name, _, _ in stack[1:]]))


def _step(
    here: Node, part: bytes, path: bytes, make: Callable[[], Node] | None
) -> Node | bytes | None:
    """Return the directory of a name, or the target of a symbolic link; None if there is none."""
    here.unpack()
    assert here.children is not None
    assert here.rows is not None
    child = here.children.get(part)
    is_there = isinstance(child, Node) or (child is not None and not is_marker(part))
    if make is not None and not is_there:
        # A folder may have the name of a whiteout: that of AUFS for hard links has.
        child = here.children[part] = make()
    if child is None or isinstance(child, Node):
        return child
    if target := here.rows.target(child):
        return target
    if make is not None:
        raise FormatError(f"the path {shown_path(path)} in a layer goes through a file")
    return None


def shown_path(path: bytes) -> str:
    """Return a path of a layer for a message."""
    return repr(path[:200].decode("utf-8", "replace"))
