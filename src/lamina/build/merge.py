"""Lay the layers of an image one over the other, as overlayfs shows what containerd has unpacked.

A directory over a directory is both of them with the metadata of the upper one; everything else
takes the place of what is below it.  Whiteouts and opaque markers hide what lower layers have.

Sources: the kernel's ``Documentation/filesystems/overlayfs.rst``; docs/adr/0015.
"""

from __future__ import annotations

from typing import NamedTuple

from lamina.build.budget import Budget, Share
from lamina.build.own_tree import Directory, copy_metadata, is_marker, new_directory, resolve
from lamina.erofs.tree import Child, InodeTable, Node, packed_trees
from lamina.posix.heap import give_freed_memory_back

MANY_ROWS = 1 << 19
"""With more of them, a tree is packed while no layer is laid over it."""


class _Pair(NamedTuple):
    """A directory so far, the one to be laid over it, and what the lower layers had here."""

    lower: Node
    upper: Node
    below: dict[bytes, Child]


class MergedTree:
    """The tree of all layers so far."""

    def __init__(self, budget: Share | None = None) -> None:
        """*budget* counts the directories that no entry describes."""
        self.budget = budget or Budget().share()
        self.rows = InodeTable()
        self.root = new_directory(self.rows)
        self.is_empty = True
        """Whether no layer was laid yet."""

    def lay(self, own: Directory) -> None:
        """Put the tree of one more layer over those before it.  Files are shared with it, and
        folders that would be the same: the tree of a layer is given up before the next is laid.

        The root keeps its mode, owner and attributes, and cannot be opaque: containerd passes over
        what a layer says of it, and the kernel over an opaque root.
        """
        self.is_empty = False
        stack: list[_Pair] = [_Pair(self.root, own, {})]
        different = _different(own)
        while stack:
            lower, upper, below = stack.pop()
            lower.unpack()
            assert lower.children is not None
            assert isinstance(upper, Directory)
            if upper.is_opaque and upper is not own:
                below, lower.children = lower.children or below, {}
            for name in upper.hidden or ():
                lower.children.pop(name, None)
            below = below or lower.children
            stack += self._lay_names(lower.children, upper.children or {}, below, different)
        if not own.is_implied:
            self.root.mtime, self.root.mtime_ns = own.mtime, own.mtime_ns

    def pack(self, own: Node) -> Node:
        """Pack the tree if it is large; return that of the layer that was laid last, packed as
        well.
        """
        if len(self.rows) >= MANY_ROWS:
            self.root, own = packed_trees(self.root, own)
            give_freed_memory_back()
        return own

    def find(self, path: bytes) -> Child | None:
        """Return what is at a path, or None; links in its directories are followed."""
        head, _, name = path.rpartition(b"/")
        place = resolve(self.root, head, self.budget)
        return place.node.entries.get(name) if place and path else None

    def _lay_names(
        self,
        lower: dict[bytes, Child],
        upper: dict[bytes, Child],
        below: dict[bytes, Child],
        different: set[int],
    ) -> list[_Pair]:
        """Lay the entries of one directory; return the pairs of directories to go on with.

        A directory that no entry describes has the metadata of the one in ``below``.
        """
        pairs = []
        for name, child in upper.items():
            if isinstance(child, int):
                if not is_marker(name):
                    lower[name] = child
                continue
            assert isinstance(child, Directory)
            there, hidden = lower.get(name), below.get(name)
            is_same = hidden is None and id(child) not in different
            if is_same and there is None:
                lower[name] = child
                continue
            old = hidden if isinstance(hidden, Node) else None
            if not isinstance(there, Node):
                there = lower[name] = new_directory(self.rows)
                copy_metadata(child if old is None or not child.is_implied else old, there)
            elif not child.is_implied:
                copy_metadata(child, there)
            if is_same and not there.entries:
                there.children = child.children
                continue
            pairs.append(_Pair(there, child, old.entries if old else {}))
        return pairs


def _different(own: Directory) -> set[int]:
    """Return the identities of directories of a layer that are not the same in the merged tree,
    even where lower layers have nothing: those that hide names or borrow files, and what they are
    in.
    """
    found: set[int] = set()
    way: list[Directory] = []
    stack = [(own, 0)]
    while stack:
        node, depth = stack.pop()
        way[depth:] = [node]
        if node.is_opaque or node.hidden is not None or node.has_borrowed:
            for directory in reversed(way):
                if id(directory) in found:
                    break
                found.add(id(directory))
        below = (node.children or {}).values()
        stack += [(child, depth + 1) for child in below if isinstance(child, Directory)]
    return found
