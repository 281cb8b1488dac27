"""Turn the entries of one layer into nodes: in its own tree, and from there in the merged one.

The own tree is what the bootstrap inside the layer's blob describes: only what the layer brings,
whiteouts verbatim (RAFS v6 §1.16, §6.1).  Files are one node in both; a directory has one in each.
"""

from __future__ import annotations

import logging
import stat
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from lamina.archive import tar
from lamina.build.merge import MergedTree
from lamina.build.own_tree import OwnTree, is_marker, shown_path
from lamina.build.scan import NO_XATTRS, LayerScan, ScannedEntry
from lamina.erofs.tree import Node
from lamina.erofs.xattr import is_storable
from lamina.errors import FormatError

INDEX_BYTES = 8
SYMLINK_MODE = stat.S_IFLNK | 0o777
"""What Linux gives every symbolic link, whatever the archive says."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class AppliedLayer:
    """What one layer became.  ``files`` are its regular files with chunks, ``first_chunks`` the
    first of each.
    """

    own: OwnTree
    files: list[Node] = field(default_factory=list)
    first_chunks: array[int] = field(default_factory=lambda: array("I"))

    def set_indexes(self, indexes: bytes) -> None:
        """Give all files other chunk indexes: 8 bytes for each chunk of the scan."""
        for node, first in zip(self.files, self.first_chunks, strict=True):
            start = first * INDEX_BYTES
            node.chunks = indexes[start : start + len(node.chunks)]


def apply_layer(
    tree: MergedTree, scan: LayerScan, indexes: bytes, adopt: Callable[[Node], Node]
) -> AppliedLayer:
    """Apply a scanned layer to the merged tree and return its own tree.

    ``indexes`` has the 8-byte EROFS chunk index of each chunk of the scan.  ``adopt`` makes a node
    for the own tree of one from a lower layer, which a hard link names.

    Raises FormatError where an entry cannot be placed.
    """
    applied = AppliedLayer(OwnTree(is_lowest=tree.is_empty, budget=tree.budget))
    own = applied.own
    for entry in scan.entries():
        if not entry.path:
            own.describe_root(entry.mtime, entry.mtime_ns)
        elif is_marker(entry.path.rpartition(b"/")[2]):
            own.hide(entry.path, _marker(entry))
        elif entry.kind == tar.HARD_LINK:
            _apply_link(tree, own, entry)
        else:
            first, count = entry.first_chunk, entry.chunk_count
            node = _node(entry, indexes[first * INDEX_BYTES : (first + count) * INDEX_BYTES])
            own.insert(entry.path, node)
            if count:
                applied.files.append(node)
                applied.first_chunks.append(first)
    tree.lay(own.root)
    own.adopt(adopt)
    return applied


def _apply_link(tree: MergedTree, own: OwnTree, entry: ScannedEntry) -> None:
    """Give what a hard link names another name, and the metadata of the link's own header.

    containerd looks for it in the layer alone and refuses others; what is only in a lower layer is
    found there all the same, and stays as it is.
    """
    node, path = own.find(entry.link)
    lower = tree.find(path) if node is None else None
    found = node or lower
    if found is None or found.children is not None:
        what = "nothing that is there" if found is None else "a directory"
        link, target = shown_path(entry.path), shown_path(entry.link)
        raise FormatError(f"The hard link {link} names {target}, {what}.")
    if lower is not None or own.is_borrowed(found):
        own.borrow(entry.path, found)
        return
    _take_metadata(found, entry)
    own.insert(entry.path, found)


def _take_metadata(node: Node, entry: ScannedEntry) -> None:
    if not node.target:
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(entry.mode)
    node.uid, node.gid, node.mtime, node.mtime_ns = (
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.mtime_ns,
    )
    if entry.xattrs:
        node.xattrs = {**node.xattrs, **_storable_xattrs(entry)}


def _node(entry: ScannedEntry, chunks: bytes) -> Node:
    kind = entry.kind
    xattrs = _storable_xattrs(entry) if entry.xattrs else NO_XATTRS
    # fmt: off
    return Node(
        SYMLINK_MODE if kind == tar.SYMLINK else entry.mode,
        entry.uid, entry.gid, entry.mtime, entry.mtime_ns,
        len(entry.link) if kind == tar.SYMLINK else entry.size, entry.rdev,
        entry.link, chunks, xattrs, {} if kind == tar.DIRECTORY else None,
    )
    # fmt: on


def _marker(entry: ScannedEntry) -> Node:
    """Return the node of a whiteout: an empty file, whatever the archive says its type is."""
    mode = stat.S_IFREG | (entry.mode & 0o7777)
    return Node(mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns, xattrs=NO_XATTRS)


def _storable_xattrs(entry: ScannedEntry) -> dict[bytes, bytes]:
    """Return the attributes that EROFS can hold; those of other systems (``com.apple...``) are left
    out, with a note.
    """
    kept = {name: value for name, value in entry.xattrs.items() if is_storable(name)}
    if len(kept) == len(entry.xattrs):
        # Many entries share one set, which is never changed.
        return entry.xattrs
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
