"""Turn the entries of one layer into nodes: in the merged tree, and in the layer's own tree.

The own tree is what the bootstrap inside the layer's blob describes: only what the layer brings,
whiteouts verbatim (RAFS v6 §1.16, §6.1).  Files are one node in both; a directory has one in each.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from lamina.archive import tar
from lamina.build.merge import MergedTree, Place, copy_metadata, is_marker, new_directory
from lamina.build.scan import NO_XATTRS, LayerScan, ScannedEntry
from lamina.erofs.tree import Node
from lamina.erofs.xattr import is_storable

INDEX_BYTES = 8

_log = logging.getLogger(__name__)


class OwnTree:
    """The tree of one layer alone; paths have no symbolic links in their directories."""

    def __init__(self) -> None:
        self.root = new_directory()
        self._directories: dict[bytes, Node] = {b"": self.root}

    def insert(self, directory: bytes, name: bytes, node: Node) -> None:
        """Put a node into a directory, made with its parents if the layer has no entry for it
        (yet).
        """
        children = self._directory(directory).children
        assert children is not None
        there = children.get(name)
        if there is not None and there.children is not None:
            if node.children is not None:
                copy_metadata(node, there)
                return
            self._forget(directory, name)
        children[name] = node
        if node.children is not None:
            self._directories[directory + b"/" + name if directory else name] = node

    def find(self, path: bytes) -> Node | None:
        """Return what the layer has at a path."""
        head, _, name = path.rpartition(b"/")
        directory = self._directories.get(head)
        return directory.children.get(name) if directory and directory.children else None

    def _directory(self, path: bytes) -> Node:
        missing = []
        while path not in self._directories:
            path, _, name = path.rpartition(b"/")
            missing.append(name)
        node = self._directories[path]
        for name in reversed(missing):
            path = path + b"/" + name if path else name
            assert node.children is not None
            node.children[name] = self._directories[path] = child = new_directory()
            node = child
        return node

    def _forget(self, directory: bytes, name: bytes) -> None:
        gone = directory + b"/" + name if directory else name
        below = gone + b"/"
        for path in [path for path in self._directories if path == gone or path.startswith(below)]:
            del self._directories[path]


@dataclass(slots=True)
class AppliedLayer:
    """What one layer became.  ``files`` are (node, first chunk, number of chunks) of its regular
    files.
    """

    own: OwnTree
    files: list[tuple[Node, int, int]] = field(default_factory=list)

    def set_indexes(self, indexes: bytes) -> None:
        """Give all files other chunk indexes: 8 bytes for each chunk of the scan."""
        for node, first, count in self.files:
            node.chunks = indexes[first * INDEX_BYTES : (first + count) * INDEX_BYTES]


def apply_layer(
    tree: MergedTree, scan: LayerScan, indexes: bytes, adopt: Callable[[Node], Node]
) -> AppliedLayer:
    """Apply a scanned layer to the merged tree and return its own tree.

    ``indexes`` has the 8-byte EROFS chunk index of each chunk of the scan.  ``adopt`` makes a node
    for the own tree of one from a lower layer, which a hard link names.

    Raises FormatError where an entry cannot be placed.
    """
    applied = AppliedLayer(OwnTree())
    own, root = applied.own, tree.root
    tree.begin_layer()
    for entry in scan.entries():
        if is_marker(entry.path):
            directory = tree.hide(entry)
            own.insert(directory, entry.path.rpartition(b"/")[2], _marker(entry))
            continue
        if not entry.path:
            copy_metadata(_node(entry, b""), root)
            copy_metadata(root, own.root)
            continue
        place, name = tree.parent_of(entry)
        if entry.kind == tar.HARD_LINK:
            _apply_link(tree, entry, place, name, own, adopt)
            continue
        first, count = entry.first_chunk, entry.chunk_count
        node = _node(entry, indexes[first * INDEX_BYTES : (first + count) * INDEX_BYTES])
        tree.insert(place, name, node)
        if count:
            applied.files.append((node, first, count))
        own.insert(place.path, name, node if node.children is None else _twin(node))
    return applied


def _apply_link(
    tree: MergedTree,
    entry: ScannedEntry,
    place: Place,
    name: bytes,
    own: OwnTree,
    adopt: Callable[[Node], Node],
) -> None:
    target, path = tree.link_target(entry)
    tree.insert(place, name, target)
    own.insert(place.path, name, own.find(path) or adopt(target))


def _node(entry: ScannedEntry, chunks: bytes) -> Node:
    kind = entry.kind
    xattrs = _storable_xattrs(entry) if entry.xattrs else NO_XATTRS
    # fmt: off
    return Node(
        entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns,
        len(entry.link) if kind == tar.SYMLINK else entry.size, entry.rdev,
        entry.link, chunks, xattrs, {} if kind == tar.DIRECTORY else None,
    )
    # fmt: on


def _twin(node: Node) -> Node:
    twin = new_directory()
    copy_metadata(node, twin)
    return twin


def _marker(entry: ScannedEntry) -> Node:
    """Return the node of a whiteout: an empty file, whatever the archive says its type is."""
    mode = stat.S_IFREG | (entry.mode & 0o7777)
    return Node(mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns, xattrs=NO_XATTRS)


def _storable_xattrs(entry: ScannedEntry) -> dict[bytes, bytes]:
    """Return the attributes that EROFS can hold; those of other systems (``com.apple...``) are left
    out, with a note.
    """
    kept = {name: value for name, value in entry.xattrs.items() if is_storable(name)}
    for name in entry.xattrs.keys() - kept.keys():
        path, shown = (text.decode("utf-8", "replace") for text in (entry.path, name))
        _log.warning(
            "%s: the extended attribute %s has no place in EROFS and is left out", path, shown
        )
    return kept


def devices_of(chunks: bytes) -> bytes:
    """Return the device byte (blob index + 1) of each of the 8-byte chunk indexes."""
    return chunks[2::INDEX_BYTES]


def renumber(chunks: bytes, devices: dict[int, int]) -> bytes:
    """Return chunk indexes with other device bytes."""
    words = bytearray(chunks)
    words[2::INDEX_BYTES] = bytes([devices[device] for device in devices_of(chunks)])
    return bytes(words)
