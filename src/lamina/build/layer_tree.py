"""Turn the entries of one layer into nodes: in its own tree, and from there in the merged one.

The own tree is what the bootstrap inside the layer's blob describes: only what the layer brings,
whiteouts verbatim (RAFS v6 §1.16, §6.1).  Files are one node in both; a directory has one in each.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from itertools import accumulate

from lamina.archive import tar
from lamina.build.merge import MergedTree
from lamina.build.own_tree import OwnTree, is_marker, shown_path
from lamina.build.scan import NO_XATTRS, LayerScan, ScannedEntry
from lamina.erofs.tree import INDEX_BYTES, Node
from lamina.erofs.xattr import is_storable
from lamina.errors import FormatError

SYMLINK_MODE = stat.S_IFLNK | 0o777
"""What Linux gives every symbolic link, whatever the archive says."""

_log = logging.getLogger(__name__)


class AppliedLayer:
    """What one layer becomes: its entries are added as they come, and then it is laid over those
    before it.
    """

    def __init__(self, tree: MergedTree) -> None:
        """``tree`` are all lower layers."""
        self._rows = tree.rows
        self.own = OwnTree(self._rows, is_lowest=tree.is_empty, budget=tree.budget)
        self._tree = tree
        self._first_chunk = self._next_chunk = self._rows.chunk_count

    def add(self, entries: LayerScan) -> None:
        """Add some entries in the order of the archive.

        Raises FormatError where one cannot be placed.
        """
        own, rows, xattrs = self.own, self._rows, entries.xattrs
        size = rows.chunk_size = entries.chunk_size
        kinds, *columns, _ = entries.columns
        counts = [-(-file_size // size) for file_size in columns[-1]]
        first_chunks = list(accumulate(counts, initial=self._next_chunk))
        self._next_chunk = first_chunks.pop()
        row = rows.extend(columns, first_chunks)
        texts = zip(*entries.texts(), kinds, strict=True)
        for number, (path, link, kind) in enumerate(texts):
            head, _, name = path.rpartition(b"/")
            if kind == tar.REGULAR and number not in xattrs and not is_marker(name):
                own.put(head, name, row + number)
            else:
                self._add(entries.entry(number, path, link), row + number)

    def _add(self, entry: ScannedEntry, row: int) -> None:
        """Add what is no ordinary file."""
        own, rows = self.own, self._rows
        if not entry.path:
            own.describe_root(entry.mtime, entry.mtime_ns)
        elif is_marker(entry.path.rpartition(b"/")[2]):
            # An empty file, whatever the archive says its type is.
            rows.make_special(row, stat.S_IFREG | (entry.mode & 0o7777), 0)
            own.hide(entry.path, row)
        elif entry.kind == tar.HARD_LINK:
            self._apply_link(entry)
        elif entry.kind == tar.DIRECTORY:
            own.insert(entry.path, _directory(entry))
        else:
            if entry.kind == tar.SYMLINK:
                rows.make_link(row, SYMLINK_MODE, entry.link)
            elif entry.kind != tar.REGULAR:
                rows.make_special(row, entry.mode, entry.rdev)
            if entry.xattrs:
                rows.set_xattrs(row, _storable_xattrs(entry))
            own.insert(entry.path, row)

    def finish(self, indexes: bytes, adopt: Callable[[Node], Node]) -> None:
        """Lay the layer over those before it.

        ``indexes`` has the 8-byte EROFS chunk index of each chunk of the layer.  ``adopt`` makes a
        node for the own tree of one from a lower layer, which a hard link names.
        """
        self.set_indexes(indexes)
        self._tree.lay(self.own.root)
        self.own.adopt(adopt)

    def take_own_root(self) -> Node:
        """Return the root of the layer's own tree, which is not kept."""
        root = self.own.root
        del self.own
        return root

    def set_indexes(self, indexes: bytes) -> None:
        """Give all files other chunk indexes: 8 bytes for each chunk of the layer."""
        self._rows.set_chunks(self._first_chunk, indexes)

    def _apply_link(self, entry: ScannedEntry) -> None:
        """Give what a hard link names another name, and the metadata of the link's own header.

        containerd looks for it in the layer alone and refuses others; what is only in a lower layer
        is found there all the same, and stays as it is.
        """
        child, path = self.own.find(entry.link)
        found = self._tree.find(path) if child is None else child
        if not isinstance(found, int):
            what = "nothing that is there" if found is None else "a directory"
            link, target = shown_path(entry.path), shown_path(entry.link)
            raise FormatError(f"the hard link {link} names {target}, {what}")
        if self.own.is_borrowed(found):
            self.own.borrow(entry.path, found)
            return
        self._take_metadata(found, entry)
        self.own.insert(entry.path, found)

    def _take_metadata(self, row: int, entry: ScannedEntry) -> None:
        rows = self._rows
        mode = rows.modes[row]
        if not stat.S_ISLNK(mode):
            mode = stat.S_IFMT(mode) | stat.S_IMODE(entry.mode)
        rows.describe(row, mode, (entry.uid, entry.gid), (entry.mtime, entry.mtime_ns))
        if entry.xattrs:
            rows.set_xattrs(row, {**rows.xattrs(row), **_storable_xattrs(entry)})


def apply_layer(
    tree: MergedTree, scan: LayerScan, indexes: bytes, adopt: Callable[[Node], Node]
) -> AppliedLayer:
    """Apply a scanned layer to the merged tree, see :class:`AppliedLayer`."""
    applied = AppliedLayer(tree)
    applied.add(scan)
    applied.finish(indexes, adopt)
    return applied


def _directory(entry: ScannedEntry) -> Node:
    xattrs = _storable_xattrs(entry) if entry.xattrs else NO_XATTRS
    # fmt: off
    return Node(entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns, xattrs=xattrs,
                children={})
    # fmt: on


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


def devices_of(chunks: bytes | bytearray) -> bytes | bytearray:
    """Return the device byte (blob index + 1) of each of the 8-byte chunk indexes."""
    return chunks[2::INDEX_BYTES]


def renumber(chunks: bytes | bytearray, devices: dict[int, int]) -> bytes:
    """Return chunk indexes with other device bytes."""
    words = bytearray(chunks)
    words[2::INDEX_BYTES] = bytes([devices[device] for device in devices_of(chunks)])
    return bytes(words)
