"""The tree of a layer as overlayfs stacks it."""

from __future__ import annotations

import stat

from lamina.build.overlay_tree import overlay_tree, renumber_devices, used_devices
from lamina.erofs.tree import Node

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
OPAQUE, WHITEOUTS = b"trusted.overlay.opaque", b"trusted.overlay.origin"


def directory(**children: Node) -> Node:
    names = {name.replace("wh_", ".wh.").encode(): node for name, node in children.items()}
    return Node(DIRECTORY, children=names)


def child(node: Node, path: str) -> Node:
    for name in path.split("/"):
        assert node.children is not None
        node = node.children[name.encode()]
    return node


def test_markers_become_what_overlayfs_knows() -> None:
    root = overlay_tree(directory(d=directory(wh_gone=Node(FILE), kept=Node(FILE, size=3))))
    assert set(child(root, "d").children or ()) == {b"gone", b"kept"}
    gone = child(root, "d/gone")
    assert (gone.mode, gone.rdev, gone.size) == (stat.S_IFCHR, 0, 0)
    assert child(root, "d").xattrs == {WHITEOUTS: b""}
    assert child(root, "d/kept").size == 3


def test_an_opaque_folder_has_an_attribute_and_no_marker() -> None:
    opaque = directory(new=Node(FILE))
    assert opaque.children is not None
    opaque.children[b".wh..wh..opq"] = Node(FILE)
    root = overlay_tree(directory(d=opaque, e=directory(), wh_e=Node(FILE)))
    assert child(root, "d").xattrs == {OPAQUE: b"y"}
    assert set(child(root, "d").children or ()) == {b"new"}
    assert child(root, "e").xattrs == {OPAQUE: b"y"}
    assert root.xattrs == {}


def test_the_root_is_never_opaque() -> None:
    root = directory(new=Node(FILE))
    assert root.children is not None
    root.children[b".wh..wh..opq"] = Node(FILE)
    assert overlay_tree(root).xattrs == {}


def test_a_layer_cannot_speak_to_overlayfs() -> None:
    redirected = Node(FILE, xattrs={b"trusted.overlay.redirect": b"/etc", b"user.a": b"b"})
    assert child(overlay_tree(directory(f=redirected)), "f").xattrs == {b"user.a": b"b"}


def test_files_with_two_names_stay_one_and_the_source_as_it_is() -> None:
    file = Node(FILE, size=4096, chunks=bytes((0, 0, 3, 0, 0, 0, 0, 0)))
    source = directory(a=file, d=directory(b=file))
    root = overlay_tree(source)
    assert child(root, "a") is child(root, "d/b")
    assert used_devices(root) == [3]
    renumber_devices(root, {3: 1})
    assert used_devices(root) == [1]
    assert used_devices(source) == [3]
