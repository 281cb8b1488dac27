"""The tree of one layer as a lower folder of overlayfs: what hides lower layers is not a name.

A whiteout is a character device 0:0, and a folder that hides the one below it has an attribute;
so a layer can be mounted by itself and stacked by the kernel, as containerd's snapshotters do.

Sources: the kernel's ``Documentation/filesystems/overlayfs.rst``; OCI image specification 1.1.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from lamina.build.layer_tree import devices_of, renumber
from lamina.build.own_tree import OPAQUE_MARKER, WHITEOUT_PREFIX, Directory, is_marker
from lamina.build.scan import NO_XATTRS
from lamina.erofs.tree import Node

OVERLAY_ATTRIBUTES: Final = b"trusted.overlay."
_OPAQUE: Final = {OVERLAY_ATTRIBUTES + b"opaque": b"y"}
_HAS_WHITEOUTS: Final = {OVERLAY_ATTRIBUTES + b"origin": b""}
"""Without it the kernel lists the whiteouts of a folder that no other layer has
(``ovl_path_check_origin_xattr``).
"""
_WHITEOUT_MODE: Final = stat.S_IFCHR


def overlay_tree(own: Node) -> Node:
    """Return a copy of the tree of a layer whose markers became what overlayfs knows.

    Of a tree that was read from a bootstrap only the names tell what is hidden.  Attributes that
    overlayfs would take for its own are left out.
    """
    copies: dict[tuple[int, int], Node] = {}
    root = _copy(own)
    stack = [(own, root)]
    while stack:
        source, target = stack.pop()
        assert target.children is not None
        hidden = _hidden_names(source)
        if source is not own and _is_opaque(source):
            _make_opaque(target)
        for name, child in (source.children or {}).items():
            if isinstance(child, Node) and child.children is not None:
                target.children[name] = copy = _copy(child)
                if name in hidden:
                    _make_opaque(copy)
                stack.append((child, copy))
            elif not is_marker(name):
                # A file with several names stays one.
                key = (id(child), -1) if isinstance(child, Node) else (id(source.rows), child)
                copies[key] = target.children[name] = copies.get(key) or _copy(source.node(child))
        whiteouts = hidden - target.children.keys()
        if whiteouts:
            target.xattrs = {**target.xattrs, **_HAS_WHITEOUTS}
        for name in whiteouts:
            target.children[name] = Node(_WHITEOUT_MODE, xattrs=NO_XATTRS)
    return root


def used_devices(root: Node) -> list[int]:
    """Return the numbers of the devices that chunks of a tree lie on, in their order."""
    found: set[int] = set()
    for node in _nodes(root):
        found.update(devices_of(node.chunks))
    return sorted(found)


def renumber_devices(root: Node, devices: dict[int, int]) -> None:
    """Give the devices of a tree other numbers."""
    for node in {id(node): node for node in _nodes(root) if node.chunks}.values():
        node.chunks = renumber(node.chunks, devices)


def _nodes(root: Node) -> Iterator[Node]:
    return (node for _, node in root.walk())


def _copy(node: Node) -> Node:
    xattrs = node.xattrs
    if any(name.startswith(OVERLAY_ATTRIBUTES) for name in xattrs):
        xattrs = {n: value for n, value in xattrs.items() if not n.startswith(OVERLAY_ATTRIBUTES)}
    # fmt: off
    return Node(node.mode, node.uid, node.gid, node.mtime, node.mtime_ns, node.size, node.rdev,
                node.target, node.chunks, xattrs, None if node.children is None else {})
    # fmt: on


def _make_opaque(directory: Node) -> None:
    directory.xattrs = {**directory.xattrs, **_OPAQUE}


def _is_opaque(directory: Node) -> bool:
    if isinstance(directory, Directory):
        return directory.is_opaque
    return OPAQUE_MARKER in (directory.children or {})


def _hidden_names(directory: Node) -> set[bytes]:
    if isinstance(directory, Directory):
        hidden = directory.hidden or set()
    else:
        hidden = {
            name.removeprefix(WHITEOUT_PREFIX)
            for name, child in (directory.children or {}).items()
            if is_marker(name) and not (isinstance(child, Node) and child.children is not None)
        }
    # Names that are whiteouts again are what AUFS kept for itself.
    return {name for name in hidden if not is_marker(name)}
