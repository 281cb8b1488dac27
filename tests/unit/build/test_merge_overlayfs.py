"""What overlayfs shows of layers that containerd has unpacked one by one (docs/adr/0015)."""

from __future__ import annotations

import pytest
from tests.support.layers import Item, folder, hard_link, opaque, symlink, whiteout
from tests.unit.build.test_merge import apply, child, large, merged, names, node

from lamina.build.merge import MergedTree
from lamina.erofs.tree import Node

__all__ = ["large"]
PLINK = ".wh..wh.plnk"


def test_opaque_markers_in_the_place_of_a_link_leave_its_target_alone() -> None:
    lower = [folder("target"), Item("target/keep"), *(symlink(name, "target") for name in "abc")]
    upper = [
        *(folder("a"), opaque("a"), Item("a/new")),
        *(opaque("b"), folder("b"), Item("b/new")),
        *(opaque("c"), Item("c/new")),
    ]
    tree = merged(lower, upper)
    expected = ["a", "a/new", "b", "b/new", "c", "c/new", "target", "target/keep"]
    assert names(tree) == expected


def test_an_opaque_marker_alone_makes_a_folder_of_a_link() -> None:
    tree = merged([folder("t"), Item("t/keep"), symlink("a", "t")], [opaque("a")])
    assert names(tree) == ["a", "t", "t/keep"]
    assert node(tree, "a").children == {}


def test_folders_that_no_entry_describes_keep_their_metadata_below_an_opaque_one() -> None:
    lower = [folder("d", 0o711, uid=3), folder("d/s", 0o700, uid=4), Item("d/s/low")]
    tree = merged(lower, [Item("d/s/t/new"), opaque("d")])
    assert names(tree) == ["d", "d/s", "d/s/t", "d/s/t/new"]
    found = [
        (node(tree, path).mode & 0o777, node(tree, path).uid) for path in ("d", "d/s", "d/s/t")
    ]
    assert found == [(0o711, 3), (0o700, 4), (0o755, 0)]


@pytest.mark.parametrize("entry", [whiteout("l/keep"), Item("l/new"), folder("l/new")])
def test_what_goes_through_a_lower_link_takes_its_place(entry: Item) -> None:
    tree = merged([folder("t"), Item("t/keep"), symlink("l", "t")], [entry])
    assert [name for name in names(tree) if name.startswith("t")] == ["t", "t/keep"]
    assert node(tree, "l").children is not None
    assert "l/keep" not in names(tree)


def test_links_of_the_same_layer_are_followed() -> None:
    tree = merged([folder("t"), Item("t/keep")], [symlink("l", "t"), Item("l/new"), opaque("l")])
    assert names(tree) == ["l", "t", "t/new"]
    assert node(tree, "l").target == b"t"


def test_entries_below_a_lower_file_make_a_folder_of_it() -> None:
    lower = [folder("etc", 0o711, uid=7), Item("etc/conf", b"file", uid=5), Item("etc/keep")]
    tree = merged(lower, [Item("etc/conf/part")])
    assert names(tree) == ["etc", "etc/conf", "etc/conf/part", "etc/keep"]
    etc, conf = node(tree, "etc"), node(tree, "etc/conf")
    assert (etc.mode & 0o777, etc.uid) == (0o711, 7)
    assert (conf.mode & 0o7777, conf.uid, conf.children is None) == (0o755, 0, False)


def test_the_folder_for_hard_links_of_aufs() -> None:
    upper = [
        *(Item(".wh..wh.aufs"), folder(".wh..wh.orph", 0o700), folder(PLINK, 0o700)),
        Item(f"{PLINK}/77.1001", b"shared", mode=0o640, uid=5, gid=6),
        *(folder("usr"), hard_link("usr/one", f"{PLINK}/77.1001")),
        hard_link("usr/two", f"{PLINK}/77.1001"),
    ]
    for link in upper[-2:]:
        link.mode, link.uid, link.gid = 0o640, 5, 6
    tree = merged([folder("etc"), Item("etc/keep")], upper)
    one = node(tree, "usr/one")
    assert child(tree, "usr/one") == child(tree, "usr/two")
    assert (one.mode & 0o7777, one.uid, one.gid, one.size) == (0o640, 5, 6, 6)
    shown = [PLINK, f"{PLINK}/77.1001", "etc", "etc/keep", "usr", "usr/one", "usr/two"]
    assert names(tree) == shown


@pytest.mark.parametrize("first", [folder(".wh.d"), Item(".wh.d"), None])
def test_entries_below_the_name_of_a_whiteout(first: Item | None) -> None:
    """Only an entry of that name hides something, not what is below it."""
    entries = [first] if first else []
    tree = merged([folder("d"), Item("d/low")], [*entries, Item(".wh.d/in")])
    hidden = [".wh.d", ".wh.d/in"]
    assert names(tree) == (hidden if first else [*hidden, "d", "d/low"])


def test_a_folder_after_its_own_whiteout_is_laid_over_the_lower_one() -> None:
    tree = merged([folder("d"), Item("d/low")], [whiteout("d"), folder("d", 0o700), Item("d/new")])
    assert names(tree) == ["d", "d/low", "d/new"]
    assert node(tree, "d").mode & 0o777 == 0o700


def test_whiteouts_of_the_lowest_layer_take_away_what_came_before() -> None:
    assert names(merged([Item("a"), Item("b"), whiteout("a")])) == ["b"]
    assert names(merged([whiteout("a"), Item("a"), Item("b")])) == ["a", "b"]


def test_a_hard_link_tells_the_metadata_of_its_file() -> None:
    link = hard_link("b", "a")
    link.mode, link.uid, link.mtime = 0o4711, 8, 99
    tree = merged([Item("a", b"x", mode=0o600, xattrs={"user.k": "v"}), link])
    a = node(tree, "a")
    assert (a.mode, a.uid, a.mtime, a.xattrs) == (0o104711, 8, 99, {b"user.k": b"v"})


def test_hard_links_to_lower_files_leave_them_as_they_are() -> None:
    links = [hard_link("b", "a"), hard_link("c", "b")]
    for link in links:
        link.mode = 0o777
    tree = MergedTree()
    apply(tree, [Item("a", b"x", mode=0o600)])
    adopted: list[Node] = []
    upper = apply(tree, links, adopted.append)
    assert len(adopted) == 1
    assert child(tree, "a") == child(tree, "b") == child(tree, "c")
    assert node(tree, "a").mode & 0o777 == 0o600
    assert names(tree) == ["a", "b", "c"]
    assert sorted(upper.own.root.children or ()) == [b"b", b"c"]


def test_symbolic_links_have_the_mode_of_linux() -> None:
    link = symlink("l", "x", uid=4)
    link.mode = 0o644
    assert (node(merged([link]), "l").mode, node(merged([link]), "l").uid) == (0o120777, 4)


def test_markers_stay_in_the_own_tree_and_out_of_the_merged_one() -> None:
    tree = MergedTree()
    apply(tree, [folder("d"), Item("d/low"), Item("f")])
    own = apply(tree, [opaque("d"), whiteout("f"), Item(f"{PLINK}/1", b"x")]).own
    assert names(tree) == [PLINK, f"{PLINK}/1", "d"]
    assert names(own.root) == [PLINK, f"{PLINK}/1", ".wh.f", "d", "d/.wh..wh..opq"]
