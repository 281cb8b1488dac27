"""Whiteouts, opaque directories, replacements and links in every position."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest
from tests.support.layers import (
    Item,
    folder,
    hard_link,
    opaque,
    symlink,
    tar_bytes,
    whiteout,
)

from lamina.archive.stream import LayerStream
from lamina.build import merge
from lamina.build.layer_tree import AppliedLayer, apply_layer
from lamina.build.merge import MergedTree
from lamina.build.scan import scan_layer
from lamina.codec.digest import Digester
from lamina.erofs.tree import Child, Node
from lamina.errors import FormatError

CHUNK = 4096


def apply(
    tree: MergedTree, items: Sequence[Item], seen: Callable[[Node], object] = id
) -> AppliedLayer:
    """Apply a layer; ``seen`` is told the nodes of lower layers that are adopted."""
    stream = LayerStream(io.BytesIO(tar_bytes(items)))
    scan = scan_layer(stream, None, CHUNK, Digester.BLAKE3)

    def adopt(node: Node) -> Node:
        seen(node)
        return node

    applied = apply_layer(tree, scan, bytes(8 * len(scan.chunk_sizes)), adopt)
    tree.pack(applied.own.root)
    return applied


@pytest.fixture(params=[False, True], ids=["small", "packed"], autouse=True)
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is the same in a tree that is packed after each layer, as large ones are."""
    if request.param:
        monkeypatch.setattr(merge, "MANY_ROWS", 0)


def merged(*layers: Sequence[Item]) -> MergedTree:
    tree = MergedTree()
    for items in layers:
        apply(tree, items)
    return tree


def names(tree: MergedTree | Node) -> list[str]:
    root = tree.root if isinstance(tree, MergedTree) else tree
    return sorted(path.decode() for path, _ in root.walk() if path)


def node(tree: MergedTree, path: str) -> Node:
    return dict(tree.root.walk())[path.encode()]


def child(tree: MergedTree, path: str) -> Child:
    """What is at a path: equal where hard links are."""
    found = tree.find(path.encode())
    assert found is not None
    return found


LOWER = [
    folder("d", 0o700),
    Item("d/a"),
    folder("d/sub"),
    Item("d/sub/x"),
    Item("f"),
    symlink("l", "d"),
]


def test_whiteouts_hide_files_and_directories() -> None:
    tree = merged(LOWER, [whiteout("f"), whiteout("d/sub"), whiteout("l")])
    assert names(tree) == ["d", "d/a"]


def test_whiteout_of_nothing_hides_nothing() -> None:
    """The folders of the markers are there, as if the layer had other entries in them."""
    tree = merged(LOWER, [whiteout("gone"), whiteout("no/such/file"), opaque("neither")])
    assert names(tree) == sorted([*names(merged(LOWER)), "no", "no/such", "neither"])


def test_whiteouts_in_the_lowest_layer_leave_no_trace() -> None:
    items = [whiteout("x"), opaque(""), folder("d"), opaque("d"), Item("d/a"), whiteout("d/b")]
    assert names(merged(items)) == ["d", "d/a"]


@pytest.mark.parametrize("first", ["whiteout", "entry"])
def test_whiteout_and_new_entry_of_one_name_in_one_layer(first: str) -> None:
    pair = [whiteout("d"), Item("d", b"now a file")]
    items = pair if first == "whiteout" else pair[::-1]
    tree = merged(LOWER, items)
    assert names(tree) == ["d", "f", "l"]
    assert node(tree, "d").size == 10


def test_whiteout_after_new_children_keeps_them() -> None:
    items = [folder("d"), Item("d/new"), whiteout("d")]
    assert names(merged(LOWER, items)) == ["d", "d/new", "f", "l"]


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_opaque_hides_lower_children_wherever_it_stands(position: int) -> None:
    items = [folder("d", 0o711), Item("d/new"), Item("d/sub/y")]
    items.insert(position, opaque("d"))
    tree = merged(LOWER, items)
    assert names(tree) == ["d", "d/new", "d/sub", "d/sub/y", "f", "l"]
    assert node(tree, "d").mode & 0o777 == 0o711


def test_an_opaque_root_hides_nothing() -> None:
    """The kernel puts the roots of all layers together, whatever they are marked as."""
    assert names(merged(LOWER, [Item("new"), opaque("")])) == sorted([*names(merged(LOWER)), "new"])


def test_opaque_and_whiteout_inside_new_directory() -> None:
    assert names(merged(LOWER, [folder("n"), opaque("n"), whiteout("n/x"), Item("n/y")])) == [
        *names(merged(LOWER)),
        "n",
        "n/y",
    ]


def test_directory_replaced_by_file_and_back() -> None:
    tree = merged(LOWER, [Item("d", b"file")], [folder("d", 0o750), Item("d/again")])
    assert names(tree) == ["d", "d/again", "f", "l"]
    assert node(tree, "d").mode & 0o777 == 0o750


def test_directory_over_directory_keeps_children_and_takes_metadata() -> None:
    tree = merged(LOWER, [folder("d", 0o1777, uid=5, gid=6, mtime=77)])
    assert names(tree) == names(merged(LOWER))
    d = node(tree, "d")
    assert (d.mode & 0o7777, d.uid, d.gid, d.mtime) == (0o1777, 5, 6, 77)


def test_directory_over_symlink_replaces_it() -> None:
    tree = merged(LOWER, [folder("l"), Item("l/in")])
    assert "l/in" in names(tree)
    assert "d/in" not in names(tree)


def test_the_last_of_two_entries_wins() -> None:
    tree = merged([Item("f", b"one"), Item("f", b"three"), symlink("s", "f"), Item("s", b"now")])
    assert (node(tree, "f").size, node(tree, "s").size, node(tree, "s").target) == (5, 3, b"")


def test_paths_through_links_stay_inside() -> None:
    lower = [
        folder("usr"),
        folder("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("up", "../../../usr"),
        symlink("abs", "/usr/lib"),
    ]
    entries = [Item("lib/a"), Item("up/b"), Item("abs/c")]
    below = [folder("usr"), folder("usr/lib"), Item("usr/lib/gone")]
    found = names(merged(below, [*lower, *entries, whiteout("lib/gone")]))
    assert [name for name in found if name.startswith("usr/")] == [
        "usr/b",
        "usr/lib",
        "usr/lib/a",
        "usr/lib/c",
    ]


def test_dangling_link_on_the_way_makes_its_target() -> None:
    assert "else/where/f" in names(merged([symlink("l", "/else/where"), Item("l/f")]))


def test_a_file_on_the_way_is_an_error() -> None:
    with pytest.raises(FormatError, match="goes through a file"):
        merged([Item("f"), Item("f/below")])


def test_link_loops_are_errors() -> None:
    with pytest.raises(FormatError, match="too many links"):
        merged([symlink("a", "b"), symlink("b", "a"), Item("a/f")])


def test_links_that_multiply_are_bounded() -> None:
    items = [folder("d")]
    items += [symlink(f"l{i}", "/../".join([f"l{i - 1}"] * 40) if i else "d") for i in range(30)]
    with pytest.raises(FormatError, match="too many links"):
        merged([*items, Item("l29/f")])


def test_missing_parents_are_roots() -> None:
    tree = merged([Item("a/b/c")])
    parent = node(tree, "a/b")
    assert (parent.mode & 0o7777, parent.uid, parent.mtime) == (0o755, 0, 0)


def test_of_the_root_only_the_time_is_taken() -> None:
    tree = merged([folder("./", 0o700, uid=3, mtime=77, xattrs={"user.a": "b"})], [Item("f")])
    root = tree.root
    assert (root.mode & 0o7777, root.uid, root.mtime, root.xattrs) == (0o755, 0, 77, {})


def test_hard_links_share_their_node() -> None:
    tree = merged([Item("a", b"x"), hard_link("b", "a"), symlink("s", "a"), hard_link("t", "s")])
    assert child(tree, "a") == child(tree, "b")
    assert node(tree, "t").target == b"a"
    assert child(tree, "s") == child(tree, "t") != child(tree, "a")


def test_hard_link_to_a_lower_layer() -> None:
    tree = MergedTree()
    apply(tree, [folder("d"), Item("d/a", b"x", mode=0o600), symlink("l", "d")])
    upper = apply(tree, [hard_link("b", "l/a")])
    assert child(tree, "b") == child(tree, "d/a")
    # The layer by itself has to have the file.
    assert names(upper.own.root) == ["b"]
    assert dict(upper.own.root.walk())[b"b"].mode & 0o777 == 0o600


def test_replacing_one_name_of_a_lower_file_leaves_the_other() -> None:
    tree = merged([Item("a", b"x"), hard_link("b", "a")], [Item("a", b"new")])
    assert (node(tree, "a").size, node(tree, "b").size) == (3, 1)


def test_whiteout_of_the_target_keeps_the_new_link() -> None:
    for items in ([hard_link("b", "a"), whiteout("a")], [whiteout("z"), hard_link("b", "a")]):
        tree = merged([Item("a", b"x"), Item("z")], items)
        assert "b" in names(tree)
    assert names(merged([Item("a")], [hard_link("b", "a"), whiteout("a")])) == ["b"]


@pytest.mark.parametrize("target", ["nothing", "d", "no/such"])
def test_hard_links_to_nothing_or_directories_are_errors(target: str) -> None:
    with pytest.raises(FormatError, match="hard link"):
        merged([folder("d"), hard_link("b", target)])


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh..."])
def test_whiteouts_of_no_name_are_errors(name: str) -> None:
    with pytest.raises(FormatError, match="names nothing"):
        merged([Item(f"d/{name}"), folder("d"), Item(f"d/{name}")])


def test_markers_of_aufs_hide_nothing_else() -> None:
    tree = merged(LOWER, [Item(".wh..wh.plnk"), Item(".wh..wh.aufs")])
    assert names(tree) == names(merged(LOWER))


def test_whiteouts_that_are_directories_or_links_are_whiteouts() -> None:
    items = [folder("d/.wh.a"), symlink(".wh.f", "x")]
    tree = MergedTree()
    apply(tree, LOWER)
    own = apply(tree, items).own
    assert names(tree) == ["d", "d/sub", "d/sub/x", "l"]
    assert names(own.root) == [".wh.f", "d", "d/.wh.a"]


def test_own_tree_has_only_what_the_layer_brings() -> None:
    tree = MergedTree()
    apply(tree, LOWER)
    own = apply(tree, [Item("d/sub/new"), whiteout("f"), opaque("d"), Item("l/through")]).own
    assert names(own.root) == [
        ".wh.f",
        "d",
        "d/.wh..wh..opq",
        "d/sub",
        "d/sub/new",
        "l",
        "l/through",
    ]


def test_own_tree_follows_replacements() -> None:
    tree = MergedTree()
    own = apply(tree, [folder("d"), Item("d/a"), Item("d"), folder("d", 0o700), Item("d/b")]).own
    assert names(own.root) == ["d", "d/b"]
    assert names(tree) == ["d", "d/b"]


def test_depth_is_bounded() -> None:
    items = [symlink("s", "/".join(["d"] * 1000))]
    deep = "/".join(["d"] * 1000)
    items += [Item(f"s/{deep}/f"), symlink("t", f"s/{deep}"), Item(f"t/{deep}/f")]
    with pytest.raises(FormatError, match="deeper"), ExitStack():
        merged(items)


def test_links_do_not_lengthen_paths_without_bound() -> None:
    """Two hundred entries whose directory would have a path of half a megabyte."""
    items = [folder("d" * 200)]
    for number in range(100):
        items += [symlink(f"l{number}", f"l{number - 1}/{'d' * 200}" if number else "d" * 200)]
        items += [Item(f"l{number}/f")]
        items += [folder(f"l{number}/{'d' * 200}")]
    with pytest.raises(FormatError, match="deeper"):
        merged(items)


def test_xattrs_of_other_systems_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tree = merged([Item("f", xattrs={"user.a": "1", "com.apple.x": "2", "security.b": "3"})])
    assert node(tree, "f").xattrs == {b"user.a": b"1", b"security.b": b"3"}
    assert "com.apple.x" in caplog.text
