"""Lay the layers of an image one over the other, as overlayfs shows what containerd has unpacked.

A directory over a directory is both of them with the metadata of the upper one; everything else
takes the place of what is below it.  Whiteouts and opaque markers hide what lower layers have.

Sources: the kernel's ``Documentation/filesystems/overlayfs.rst``; docs/adr/0015.
"""

from __future__ import annotations

from typing import NamedTuple

from lamina.build.budget import Budget, Share
from lamina.build.own_tree import Directory, copy_metadata, is_marker, new_directory, resolve
from lamina.erofs.tree import Node


class _Pair(NamedTuple):
    """A directory so far, the one to be laid over it, and what the lower layers had here."""

    lower: Node
    upper: Node
    below: dict[bytes, Node]


class MergedTree:
    """The tree of all layers so far."""

    def __init__(self, budget: Share | None = None) -> None:
        """*budget* counts the directories that no entry describes."""
        self.budget = budget or Budget().share()
        self.root = new_directory()
        self.is_empty = True
        """Whether no layer was laid yet."""

    def lay(self, own: Directory) -> None:
        """Put the tree of one more layer over those before it.  Files are shared with it, and
        directories are not.

        The root keeps its mode, owner and attributes, and cannot be opaque: containerd passes over
        what a layer says of it, and the kernel over an opaque root.
        """
        self.is_empty = False
        stack: list[_Pair] = [_Pair(self.root, own, {})]
        while stack:
            lower, upper, below = stack.pop()
            assert lower.children is not None
            assert isinstance(upper, Directory)
            if upper.is_opaque and upper is not own:
                below, lower.children = lower.children or below, {}
            for name in upper.hidden:
                lower.children.pop(name, None)
            stack += _lay_names(lower.children, upper.children or {}, below or lower.children)
        if not own.is_implied:
            self.root.mtime, self.root.mtime_ns = own.mtime, own.mtime_ns

    def find(self, path: bytes) -> Node | None:
        """Return what is at a path, or None; links in its directories are followed."""
        head, _, name = path.rpartition(b"/")
        place = resolve(self.root, head, self.budget)
        return (place.node.children or {}).get(name) if place and path else None


def _lay_names(
    lower: dict[bytes, Node], upper: dict[bytes, Node], below: dict[bytes, Node]
) -> list[_Pair]:
    """Lay the entries of one directory; return the pairs of directories to go on with.

    A directory that no entry describes has the metadata of the one in ``below``.
    """
    pairs = []
    for name, node in upper.items():
        if node.children is None:
            if not is_marker(name):
                lower[name] = node
            continue
        assert isinstance(node, Directory)
        there, old = lower.get(name), below.get(name)
        if there is None or there.children is None:
            there = lower[name] = new_directory()
            is_new = old is None or old.children is None or not node.is_implied
            copy_metadata(node if old is None or is_new else old, there)
        elif not node.is_implied:
            copy_metadata(node, there)
        pairs.append(_Pair(there, node, (old.children if old else None) or {}))
    return pairs
