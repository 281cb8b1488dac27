"""The file tree that a bootstrap is written from: made by the merge, laid out by the writer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """One inode; its names are the keys in its parents, so a hard link is the same Node twice.

    ``rdev`` is in the kernel's "new" encoding (spec of EROFS ``i_u``); ``xattrs`` maps full names
    (``b"user.x"``) to values; ``chunks`` are the 8-byte EROFS chunk indexes of a regular file,
    ready to be stored (RAFS v6 §1.11), ``ceil(size / chunk_size)`` of them.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    chunks: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Node] | None = None

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Yield (relative path, node), parents first, names in byte order."""
        stack = [(path, self)]
        while stack:
            here, node = stack.pop()
            yield here, node
            for name in sorted(node.children or (), reverse=True):
                assert node.children is not None
                stack.append((here + b"/" + name if here else name, node.children[name]))
