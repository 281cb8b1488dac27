"""A bootstrap without the attributes that its reader must not see."""

from __future__ import annotations

import stat

import pytest
from tests.support.native_images import build_image

from lamina.erofs.check import check_bootstrap
from lamina.erofs.hidden_attributes import without_attributes
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import FormatError

OVERLAY = b"trusted.overlay."


def built(**attributes: dict[bytes, bytes]) -> bytes:
    """A bootstrap with a folder ``d`` of empty files, each with attributes."""
    nodes = {
        b"d/" + name.encode(): Node(stat.S_IFREG | 0o644, xattrs=xattrs)
        for name, xattrs in attributes.items()
    }
    return build_image({b"content": b"x" * 5000}, nodes=nodes).bootstrap


def attributes(data: bytes) -> dict[bytes, dict[bytes, bytes]]:
    with Bootstrap(data) as bootstrap:
        root = bootstrap.inode(bootstrap.root_nid)
        nid = bootstrap.lookup(root, b"d")
        assert nid is not None
        return {
            entry.name: bootstrap.xattrs(bootstrap.inode(entry.nid))
            for entry in bootstrap.readdir(bootstrap.inode(nid))
        }


def hidden(data: bytes) -> bytes | None:
    with Bootstrap(data) as bootstrap:
        return without_attributes(bootstrap, OVERLAY)


def test_only_those_are_gone() -> None:
    before = built(
        one={b"trusted.overlay.opaque": b"y", b"user.a": b"1", b"trusted.other": b"2"},
        two={b"trusted.overlay.overlay.whiteout": b"", b"trusted.overlay.metacopy": b"x" * 300},
        three={b"user.overlay.opaque": b"y", b"trusted.overlay": b"z", b"user.v": b"overlay.x"},
    )
    after = hidden(before)
    assert after is not None
    assert len(after) == len(before)
    changed = [place for place in range(len(before)) if before[place] != after[place]]
    assert [(before[place], after[place]) for place in changed] == [(4, 5)] * 3
    # Put back what has no name any more for us either, and everything is as it was.
    restored = bytearray(after)
    for place in changed:
        restored[place] = 4
    assert attributes(bytes(restored)) == attributes(before)
    with pytest.raises(FormatError, match="damaged extended attribute"):
        attributes(after)


def test_an_image_without_them() -> None:
    assert hidden(built(one={b"user.a": b"1", b"trusted.other": b"2"})) is None
    # The words alone are none: in a name, a value, another namespace.
    words = {b"user.overlay.opaque": b"trusted.overlay.opaque", b"trusted.overlay": b"overlay."}
    assert hidden(built(one=words)) is None
    assert hidden(build_image({b"overlay.opaque": b"x"}).bootstrap) is None


def test_they_are_found_wherever_they_are() -> None:
    """On both sides of the places where the search for the words begins anew."""
    marks = {b"trusted.overlay.opaque": b"y"}
    many = {f"f{number:05}": {b"user.a": b"v" * 900} for number in range(1300)}
    places = {f"f{number:05}x": marks for number in range(0, 1300, 7)}
    before = built(**many, **places)
    assert len(before) > 1 << 20
    after = hidden(before)
    assert after is not None
    assert sum(a != b for a, b in zip(before, after, strict=True)) == len(places)


def test_a_tree_that_cannot_be_read() -> None:
    data = bytearray(built(one={b"trusted.overlay.opaque": b"y"}))
    at = data.index(b"overlay.opaque")
    data[at - 3] = 0x84
    with pytest.raises(FormatError, match="damaged"):
        hidden(bytes(data))


def test_a_cyclic_tree_ends() -> None:
    data = bytearray(built(one={b"trusted.overlay.opaque": b"y"}))
    with Bootstrap(bytes(data)) as bootstrap:
        root = bootstrap.inode(bootstrap.root_nid)
        folder = bootstrap.inode(bootstrap.lookup(root, b"d") or 0)
        start, size = bootstrap.data_extent(folder, 0, min(folder.size, 4096))
        child = bootstrap.lookup(folder, b"one") or 0
    block = bytes(data[start : start + size])
    place = start + block.index(child.to_bytes(8, "little"))
    data[place : place + 8] = root.nid.to_bytes(8, "little")
    with pytest.raises(FormatError):
        check_bootstrap(bytes(data))
    assert hidden(bytes(data)) is None
