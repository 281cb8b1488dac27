"""Images whose layers say things that tools read in different ways (docs/adr/0015)."""

from __future__ import annotations

import io
import tarfile
from typing import TypeAlias

from tests.support.layers import (
    CHARACTER,
    Item,
    folder,
    hard_link,
    opaque,
    symlink,
    tar_bytes,
    whiteout,
)

PLINK = ".wh..wh.plnk"
Layer: TypeAlias = list[Item] | bytes


def with_global_records(records: dict[str, str]) -> bytes:
    """A layer whose archive begins with a global pax header."""
    buffer = io.BytesIO()
    options = {"format": tarfile.PAX_FORMAT, "pax_headers": records}
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:  # type: ignore[call-overload]
        tar.addfile(Item("g/a", b"A", uid=3, mtime=7).info(), io.BytesIO(b"A"))
    return buffer.getvalue()


def link(path: str, target: str, **metadata: int) -> Item:
    """A hard link whose header has metadata."""
    item = hard_link(path, target)
    for name, value in metadata.items():
        setattr(item, name, value)
    return item


def odd_link(path: str, target: str) -> Item:
    """A symbolic link whose header has a mode."""
    item = symlink(path, target, uid=4)
    item.mode = 0o640
    return item


D, A = folder("d", 0o711, uid=3), Item("d/low", b"low")
IMAGES: dict[str, list[Layer]] = {
    "opaque folder over a link": [
        [folder("t"), Item("t/keep"), *(symlink(name, "t") for name in "abc")],
        [
            *(folder("a"), opaque("a"), Item("a/new"), opaque("b"), folder("b"), Item("b/new")),
            *(opaque("c"), Item("c/new")),
        ],
    ],
    "only an opaque marker over a link": [
        [folder("t", mtime=0), Item("t/x"), symlink("l", "t")],
        [opaque("l")],
    ],
    "opaque folder": [[D, A], [Item("d/new"), opaque("d")]],
    "opaque folder with one that no entry describes": [
        [D, folder("d/s", 0o700, uid=4), Item("d/s/low")],
        [Item("d/s/t/new"), opaque("d")],
    ],
    "opaque folder that no layer has": [[D, A], [opaque("new/er")]],
    "opaque marker below a file": [[D, A, Item("f")], [opaque("f")]],
    "opaque root": [[D, A], [Item("new"), opaque("")], [Item("top")]],
    "opaque in the lowest layer": [[D, A, opaque("d")], [Item("d/new")]],
    "below a file": [[D, Item("d/conf", uid=5, mode=0o640)], [Item("d/conf/part", b"p")]],
    "below a link": [[folder("t"), Item("t/x"), symlink("l", "t")], [Item("l/new")]],
    "below a link to nowhere": [[symlink("l", "no")], [Item("l/new")]],
    "below a link of the same layer": [
        [folder("t"), Item("t/x")],
        [symlink("l", "t"), Item("l/new")],
    ],
    "whiteout below a link": [[folder("t"), Item("t/x"), symlink("l", "t")], [whiteout("l/x")]],
    "whiteout below a link of the same layer": [
        [folder("t"), Item("t/x")],
        [symlink("l", "t"), whiteout("l/x")],
    ],
    "folder over a link": [
        [folder("t"), Item("t/x"), symlink("l", "t")],
        [folder("l"), Item("l/y")],
    ],
    "link over a folder": [[D, A], [folder("t"), symlink("d", "t")]],
    "file over a folder and back": [[D, A], [Item("d", b"f")], [folder("d"), Item("d/new")]],
    "folder that no entry describes": [
        [folder("d", 0o711, uid=3, xattrs={"user.a": "v"}), A],
        [Item("d/new"), Item("x/y/new")],
    ],
    "folder that no entry describes, hidden in between": [[D, A], [whiteout("d")], [Item("d/new")]],
    "whiteouts of what is not there": [[D, A], [whiteout("gone"), whiteout("no/such/file")]],
    "whiteout before a file": [[D, A], [whiteout("d"), Item("d", b"f")]],
    "whiteout before a folder": [[D, A], [whiteout("d"), folder("d"), Item("d/new")]],
    "whiteouts in the lowest layer": [
        [D, A, Item("d/b"), whiteout("d/low"), whiteout("c"), Item("c")]
    ],
    "hard link folder of AUFS": [
        [folder("e"), Item("e/keep")],
        [Item(".wh..wh.aufs"), folder(".wh..wh.orph", 0o700), folder(PLINK, 0o700)]
        + [Item(f"{PLINK}/77.1001", b"shared", mode=0o640, uid=5, gid=6), folder("usr")]
        + [link(f"usr/{n}", f"{PLINK}/77.1001", mode=0o640, uid=5, gid=6) for n in ("one", "two")],
    ],
    "hard link folder of AUFS, no entry for it": [
        [Item("keep"), Item(f"{PLINK}/1", b"x"), link("one", f"{PLINK}/1")],
    ],
    "below the name of a whiteout": [[D, A], [Item(".wh.d/in")]],
    "folder with the name of a whiteout": [[D, A], [folder(".wh.d"), Item(".wh.d/in")]],
    "metadata of hard links": [
        [
            Item("a", b"A", mode=0o600, xattrs={"user.k": "v"}),
            link("b", "a", mode=0o4711, uid=8, mtime=99),
        ],
    ],
    "names with parents": [
        [D, Item("d/../b", b"b"), hard_link("c", "x/../b"), Item("e/./f//../g")]
    ],
    "metadata of the root": [[folder("./", 0o700, uid=5, xattrs={"user.a": "b"}), A]],
    "mode of a link": [[odd_link("l", "x")]],
    "device 0:0": [[D, A, Item("f")], [Item("d", kind=CHARACTER), Item("f", kind=CHARACTER)]],
    "the last of two entries": [[Item("f", b"1"), Item("f", b"2"), D, A, Item("d", b"file")]],
    "two entries of a folder": [[folder("d", 0o700), A, folder("d", 0o711, uid=4)]],
    "global records": [with_global_records({"mtime": "123.5", "uid": "77", "gid": "78"})],
    "global path": [with_global_records({"path": "evil", "SCHILY.xattr.user.g": "1"})],
    "names below a whiteout's own": [
        [Item("wh..x"), Item("b")],
        [Item(".wh..wh.x"), Item(".wh.b")],
    ],
}
"""All of these containerd unpacks."""

REFUSED: dict[str, list[Layer]] = {
    "file and whiteout": [[D, A], [Item("d/low", b"new"), whiteout("d/low")]],
    "folder and whiteout": [[D, A], [folder("d"), Item("d/new"), whiteout("d")]],
    "whiteout and below it": [[D, A], [whiteout("d"), Item("d/new")]],
    "hard link to a lower layer": [[Item("a", b"x")], [hard_link("b", "a")]],
    "below a file of the same layer": [[Item("f"), Item("f/below")]],
}
"""These it refuses, so that they may mean anything that fails closed."""


def layer_bytes(layer: Layer) -> bytes:
    """The archive of a layer."""
    return layer if isinstance(layer, bytes) else tar_bytes(layer)
