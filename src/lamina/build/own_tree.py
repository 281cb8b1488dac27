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
from dataclasses import dataclass, field
from typing import NamedTuple

from lamina.archive.tar import MAX_PATH_BYTES
from lamina.build.budget import Budget, Share
from lamina.build.scan import NO_XATTRS
from lamina.erofs.tree import Node
from lamina.errors import FormatError

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
IMPLIED_DIRECTORY_MODE = stat.S_IFDIR | 0o755
IMPLIED_DIRECTORY_BYTES = 1024
"""What one takes in the trees of layer and image: one name may imply two thousand."""
MAX_LINK_HOPS = 255
MAX_STEPS = 8192
"""Most components looked at for one path, those of link targets included."""


@dataclass(slots=True)
class Directory(Node):
    """A directory of a layer, and what it does to a lower one in its place: whether it hides all of
    it, which names it hides (``hidden``), and whether its metadata is left alone because no entry
    describes it.
    """

    hidden: set[bytes] = field(default_factory=set)
    is_opaque: bool = False
    is_implied: bool = True


class Place(NamedTuple):
    """A directory of a tree and its path without symbolic links."""

    node: Node
    path: bytes


def new_directory(mode: int = IMPLIED_DIRECTORY_MODE) -> Node:
    """Return an empty directory; by default as one that no entry describes: root's, 0755, from
    1970.
    """
    return Node(mode, xattrs=NO_XATTRS, children={})


def copy_metadata(source: Node, target: Node) -> None:
    """Give a node the mode, owner, times and extended attributes of another."""
    target.mode, target.uid, target.gid = source.mode, source.uid, source.gid
    target.mtime, target.mtime_ns, target.xattrs = source.mtime, source.mtime_ns, source.xattrs


def is_marker(name: bytes) -> bool:
    """Whether the name of an entry is that of a whiteout or opaque marker."""
    return name.startswith(WHITEOUT_PREFIX)


class OwnTree:
    """The tree of one layer alone.

    Markers are in it by their names, as empty files.  Nothing lies below the ``is_lowest`` layer,
    so its whiteouts take away what the layer itself has brought before them.
    """

    def __init__(self, *, is_lowest: bool = False, budget: Share | None = None) -> None:
        """What no entry describes is counted in *budget*."""
        self.root = _directory()
        self._budget = budget or Budget().share()
        self._is_lowest = is_lowest
        self._places: dict[bytes, Directory] = {}
        self._borrowed: list[tuple[Directory, bytes, Node]] = []
        self._borrowed_ids: set[int] = set()

    def describe_root(self, mtime: int, mtime_ns: int) -> None:
        """Take the time of the root from its entry; containerd passes over all that it says."""
        self.root.mtime, self.root.mtime_ns = mtime, mtime_ns
        self.root.is_implied = False

    def insert(self, path: bytes, node: Node) -> None:
        """Put a node at a path; a directory over a directory only gives it its metadata.

        Raises FormatError if the way there leads through a file.
        """
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        children = directory.children
        assert children is not None
        there = children.get(name)
        if there is None:
            # The directory that comes after its own whiteout is laid over what it has hidden.
            directory.hidden.discard(name)
        elif isinstance(there, Directory):
            if node.children is not None:
                copy_metadata(node, there)
                there.is_implied = False
                return
            self._places.clear()
        elif there.target:
            self._places.clear()
        if node.children is not None:
            children[name] = child = _directory()
            copy_metadata(node, child)
            child.is_implied = False
        else:
            children[name] = node

    def hide(self, path: bytes, marker: Node) -> None:
        """Apply a whiteout or opaque marker and keep it.

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
                    f"The whiteout {shown_path(path)} names nothing that could be hidden."
                )
            directory.hidden.add(hidden)
            if self._is_lowest and not is_marker(hidden) and children.pop(hidden, None) is not None:
                self._places.clear()
        if not isinstance(children.get(name), Directory):
            children[name] = marker

    def find(self, path: bytes) -> tuple[Node | None, bytes]:
        """Return what the layer has at a path, and that path without the links of the layer."""
        head, _, name = path.rpartition(b"/")
        place = resolve(self.root, head, self._budget)
        if place is None or not path:
            return None, path
        assert place.node.children is not None
        node = place.node.children.get(name)
        if node is not None and is_marker(name) and node.children is None:
            node = None
        return node, place.path + b"/" + name if place.path else name

    def borrow(self, path: bytes, node: Node) -> None:
        """Put a node of a lower layer at a path, until :meth:`adopt`."""
        self.insert(path, node)
        head, _, name = path.rpartition(b"/")
        self._borrowed.append((self._directory(head), name, node))
        self._borrowed_ids.add(id(node))

    def is_borrowed(self, node: Node) -> bool:
        """Whether a node is one of a lower layer."""
        return id(node) in self._borrowed_ids

    def adopt(self, make: Callable[[Node], Node]) -> None:
        """Put nodes of this layer in the places of those borrowed from lower ones."""
        made: dict[int, Node] = {}
        for directory, name, node in self._borrowed:
            assert directory.children is not None
            if directory.children.get(name) is node:
                if id(node) not in made:
                    made[id(node)] = make(node)
                directory.children[name] = made[id(node)]

    def _directory(self, path: bytes) -> Directory:
        found = self._places.get(path)
        if found is None:
            place = resolve(self.root, path, self._budget, make=self._implied_directory)
            assert place is not None
            assert isinstance(place.node, Directory)
            found = self._places[path] = place.node
            self._budget.add(0, len(path))
        return found

    def _implied_directory(self) -> Directory:
        self._budget.add(1, IMPLIED_DIRECTORY_BYTES)
        return _directory()


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
            raise FormatError(
                f"The path {shown_path(path)} in a layer goes through too many links."
            )
        if part == b"..":
            del stack[max(1, len(stack) - 1) :]
        if part in (b"", b".", b".."):
            continue
        child = _step(stack[-1][1], part, path, make)
        if child is None:
            return None
        if child.target:
            hops += 1
            if child.target.startswith(b"/"):
                del stack[1:]
            parts = child.target.split(b"/")[::-1]
            budget.follow(len(parts))
            todo += parts
            continue
        path_bytes = stack[-1][2] + len(part) + 1
        if path_bytes > MAX_PATH_BYTES:
            raise FormatError(f"The path {shown_path(path)} in a layer is deeper than any can be.")
        stack.append((part, child, path_bytes))
    return Place(stack[-1][1], b"/".join([name for name, _, _ in stack[1:]]))


def _step(here: Node, part: bytes, path: bytes, make: Callable[[], Node] | None) -> Node | None:
    """Return the directory or symbolic link of a name, None if there is none."""
    assert here.children is not None
    child = here.children.get(part)
    is_there = child is not None and (child.children is not None or not is_marker(part))
    if make is not None and not is_there:
        # A folder may have the name of a whiteout: that of AUFS for hard links has.
        child = here.children[part] = make()
    if child is None or child.target or child.children is not None:
        return child
    if make is not None:
        raise FormatError(f"The path {shown_path(path)} in a layer goes through a file.")
    return None


def _directory() -> Directory:
    return Directory(IMPLIED_DIRECTORY_MODE, xattrs=NO_XATTRS, children={})


def shown_path(path: bytes) -> str:
    """Return a path of a layer for a message."""
    return repr(path[:200].decode("utf-8", "replace"))
