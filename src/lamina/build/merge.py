"""Apply the layers of an image one after the other to one virtual tree, as unpacking them to a
folder would.

Entries take effect in the order of the archive.  The parent of a path is resolved inside the tree,
symbolic links included, with the root as the ceiling, so nothing can be placed outside; what is
missing on the way is made.  Whiteouts hide what lower layers have and never what their own layer
has brought, wherever in it they stand.

Sources: OCI image specification 1.1, "Image Layer Filesystem Changeset"; behaviour of umoci 0.4
(``unpack``).
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from lamina.archive.tar import MAX_PATH_BYTES
from lamina.build.scan import NO_XATTRS, ScannedEntry
from lamina.erofs.tree import Node
from lamina.errors import FormatError

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
AUFS_PREFIX = b".wh..wh."
IMPLIED_DIRECTORY_MODE = stat.S_IFDIR | 0o755
MAX_LINK_HOPS = 255
MAX_STEPS = 8192
"""Most components looked at for one path, those of link targets included."""


class Place(NamedTuple):
    """A directory of the tree and its path without symbolic links."""

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


class MergedTree:
    """The tree of all layers so far.  Call :meth:`begin_layer` before the entries of each."""

    def __init__(self) -> None:
        self.root = new_directory()
        self._touched: set[tuple[int, bytes]] = set()
        self._places: dict[bytes, Place] = {}

    def begin_layer(self) -> None:
        """Forget what the layer before has touched: from now on it is lower."""
        self._touched.clear()
        self._places.clear()

    def parent_of(self, entry: ScannedEntry) -> tuple[Place, bytes]:
        """Return the directory that an entry goes into, made if missing, and its name there."""
        head, _, name = entry.path.rpartition(b"/")
        place = self._places.get(head)
        if place is None:
            place = self._resolve(head, create=True)
            assert place is not None
            self._places[head] = place
        return place, name

    def insert(self, place: Place, name: bytes, node: Node) -> None:
        """Put a node into the tree; a directory over a directory only gives it its metadata."""
        children = place.node.children
        assert children is not None
        there = children.get(name)
        self._touched.add((id(place.node), name))
        if there is not None and there is not node:
            if there.children is not None and node.children is not None:
                copy_metadata(node, there)
                return
            self._forget(there)
        children[name] = node

    def link_target(self, entry: ScannedEntry) -> tuple[Node, bytes]:
        """Return what a hard link names, and its path without symbolic links in the directories.

        Raises FormatError if nothing is there, or a directory.
        """
        head, _, name = entry.link.rpartition(b"/")
        place = self._resolve(head, create=False) if entry.link else None
        node = place.node.children.get(name) if place and place.node.children else None
        if place is None or node is None:
            raise FormatError(
                f"The hard link {_shown(entry.path)} names {_shown(entry.link)}, not there."
            )
        if node.children is not None:
            raise FormatError(
                f"The hard link {_shown(entry.path)} names the directory {_shown(entry.link)}."
            )
        return node, _join(place.path, name)

    def hide(self, entry: ScannedEntry) -> bytes:
        """Apply a whiteout or opaque marker; return the path of its directory, resolved as far as
        it is there.
        """
        head, _, name = entry.path.rpartition(b"/")
        place = self._places.get(head) or self._resolve(head, create=False)
        if place is None:
            return head
        if name == OPAQUE_MARKER:
            self._purge(place.node)
        elif not name.startswith(AUFS_PREFIX):
            hidden = name[len(WHITEOUT_PREFIX) :]
            if hidden in (b"", b".", b".."):
                raise FormatError(
                    f"The whiteout {_shown(entry.path)} names nothing that could be hidden."
                )
            children = place.node.children
            assert children is not None
            there = children.get(hidden)
            if there is not None and (id(place.node), hidden) not in self._touched:
                self._forget(there)
                del children[hidden]
            elif there is not None and there.children is not None:
                self._purge(there)
        return place.path

    def _purge(self, directory: Node) -> None:
        """Remove everything below a directory that this layer has not brought."""
        pending = [directory]
        while pending:
            node = pending.pop()
            assert node.children is not None
            for name, child in list(node.children.items()):
                if (id(node), name) not in self._touched:
                    self._forget(child)
                    del node.children[name]
                elif child.children is not None:
                    pending.append(child)

    def _forget(self, node: Node) -> None:
        """Drop resolved paths that may lead through a node that goes away."""
        if node.children is not None or node.target:
            self._places.clear()

    def _resolve(self, path: bytes, *, create: bool) -> Place | None:
        """Resolve a directory path inside the tree, as securejoin does; None if it is not there.

        With ``create`` missing directories are made, and all on the way count as touched by the
        layer.
        """
        # Name, directory, and length of its path, to which links add what no entry has.
        stack: list[tuple[bytes, Node, int]] = [(b"", self.root, 0)]
        todo = path.split(b"/")[::-1] if path else []
        hops = steps = 0
        while todo:
            part = todo.pop()
            steps += 1
            if steps > MAX_STEPS or hops > MAX_LINK_HOPS:
                raise FormatError(
                    f"The path {_shown(path)} in a layer goes through too many links."
                )
            if part == b"..":
                del stack[max(1, len(stack) - 1) :]
            if part in (b"", b".", b".."):
                continue
            child = self._step(stack[-1][1], part, path, create=create)
            if child is None:
                return None
            if child.target:
                hops += 1
                if child.target.startswith(b"/"):
                    del stack[1:]
                todo += child.target.split(b"/")[::-1]
                continue
            path_bytes = stack[-1][2] + len(part) + 1
            if path_bytes > MAX_PATH_BYTES:
                raise FormatError(f"The path {_shown(path)} in a layer is deeper than any can be.")
            stack.append((part, child, path_bytes))
        return Place(stack[-1][1], b"/".join([name for name, _, _ in stack[1:]]))

    def _step(self, here: Node, part: bytes, path: bytes, *, create: bool) -> Node | None:
        """Return the directory or symbolic link of a name, None if there is none."""
        assert here.children is not None
        child = here.children.get(part)
        if child is None and create:
            if part.startswith(WHITEOUT_PREFIX):
                raise FormatError(
                    f"The path {_shown(path)} in a layer has a whiteout as directory."
                )
            child = here.children[part] = new_directory()
        if child is None or child.target:
            return child
        if child.children is None:
            if create:
                raise FormatError(f"The path {_shown(path)} in a layer goes through a file.")
            return None
        if create:
            self._touched.add((id(here), part))
        return child


def is_marker(path: bytes) -> bool:
    """Whether an entry is a whiteout, an opaque marker or another marker of AUFS, by its name."""
    return path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX)


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _shown(path: bytes) -> str:
    return repr(path[:200].decode("utf-8", "replace"))
