"""A bootstrap for a reader that must not see some extended attributes.

The kernel reads an image's attributes by itself, so what it must not see has to be gone from the
file.  Nothing moves: an entry gets the prefix index of Lustre, for which Linux has no handler, so
it is neither listed nor found (``fs/erofs/xattr.h``, ``erofs_xattr_prefix``).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from lamina.erofs.layout import XATTR_PREFIXES, Inode
from lamina.erofs.reader import Bootstrap
from lamina.erofs.xattr import xattr_entries

_HIDDEN_INDEX: Final = 5
"""``EROFS_XATTR_INDEX_LUSTRE`` of ``erofs_fs.h``."""
_INDEX_IN_ENTRY: Final = 1
_STEP_BYTES: Final = 1 << 20


def without_attributes(bootstrap: Bootstrap, beginning: bytes) -> bytes | None:
    """Return the metadata without the attributes whose full names start with ``beginning``, which
    has letters after one of EROFS's prefixes; None if there are none.

    Raises FormatError for a tree that cannot be read.
    """
    prefix = next(each for each in XATTR_PREFIXES.values() if beginning.startswith(each))
    # Nearly no image has any, and a look at all inodes takes a hundred times as long.
    if not _contains(bootstrap.view, beginning.removeprefix(prefix)):
        return None
    found = [place for place, name in _attributes(bootstrap) if name.startswith(beginning)]
    if not found:
        return None
    changed = bytearray(bootstrap.view)
    for place in found:
        changed[place + _INDEX_IN_ENTRY] = _HIDDEN_INDEX
    return bytes(changed)


def _contains(view: memoryview, text: bytes) -> bool:
    return any(
        text in bytes(view[start : start + _STEP_BYTES + len(text)])
        for start in range(0, len(view), _STEP_BYTES)
    )


def _attributes(bootstrap: Bootstrap) -> Iterator[tuple[int, bytes]]:
    """Yield (offset of its entry in the metadata, full name) of every attribute of the tree."""
    for inode in _inodes(bootstrap):
        if inode.xattr_size:
            start = inode.offset + inode.inode_size
            area = bytes(bootstrap.view[start : start + inode.xattr_size])
            for entry in xattr_entries(area, inode.nid):
                yield start + entry.position, entry.name


def _inodes(bootstrap: Bootstrap) -> Iterator[Inode]:
    """Yield every inode once, also of a tree with cycles."""
    pending, seen = [bootstrap.root_nid], {bootstrap.root_nid}
    while pending:
        inode = bootstrap.inode(pending.pop())
        yield inode
        if stat.S_ISDIR(inode.mode):
            for entry in bootstrap.entries(inode):
                if entry.nid not in seen:
                    seen.add(entry.nid)
                    pending.append(entry.nid)
