"""Inodes in rows are written as objects are."""

from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st
from tests.support.rafs import blob_entry

from lamina.erofs.layout import ChunkIndex
from lamina.erofs.tree import Child, InodeTable, Node, packed_trees
from lamina.erofs.writer import BootstrapOptions, write_bootstrap

CHUNK = 4096
KINDS = [stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]
SETS: list[dict[bytes, bytes]] = [{}, {}, {b"user.a": b"1"}, {b"security.selinux": b"x" * 40}]

inodes = st.builds(
    Node,
    mode=st.builds(lambda kind, mode: kind | mode, st.sampled_from(KINDS), st.integers(0, 0o7777)),
    uid=st.integers(0, (1 << 32) - 1),
    gid=st.integers(0, (1 << 32) - 1),
    mtime=st.integers(-(1 << 62), 1 << 62),
    mtime_ns=st.integers(0, 999_999_999),
    size=st.sampled_from([0, 1, CHUNK, CHUNK + 1, 5 * CHUNK]),
    rdev=st.integers(0, (1 << 32) - 1),
    target=st.sampled_from([b"x", b"to/there", b"t" * 3000, b"t" * 4095]),
    xattrs=st.sampled_from(SETS),
)


def tree(nodes: list[Node], *, as_rows: bool) -> Node:
    """A folder with all of them, one below it with every second, and two names for the first."""
    rows = InodeTable(CHUNK)
    children: list[Child] = []
    chunk = 0
    for node in nodes:
        kind = stat.S_IFMT(node.mode)
        count = -(-node.size // CHUNK) if kind == stat.S_IFREG else 0
        indexes = b"".join(ChunkIndex(0, chunk + i, 8 * (chunk + i)).pack() for i in range(count))
        owner, time = (node.uid, node.gid), (node.mtime, node.mtime_ns)
        if not as_rows:
            size = len(node.target) if kind == stat.S_IFLNK else node.size
            target = node.target if kind == stat.S_IFLNK else b""
            # fmt: off
            made = Node(node.mode, *owner, *time, size, node.rdev, target, indexes, node.xattrs)
            # fmt: on
            children.append(made)
        else:
            columns = [[value] for value in (node.mode, *owner, *time, node.size)]
            row = rows.extend(columns, [chunk])
            if kind == stat.S_IFLNK:
                rows.make_link(row, node.mode, node.target)
            elif kind != stat.S_IFREG:
                rows.make_special(row, node.mode, node.rdev)
            if node.xattrs:
                rows.set_xattrs(row, node.xattrs)
            rows.set_chunks(chunk, indexes)
            children.append(row)
        chunk += count
    names = {b"%03d" % number: child for number, child in enumerate(children)}
    below: dict[bytes, Child] = {name + b"a": names[name] for name in sorted(names)[1::2]}
    if children:
        names[b"link"] = below[b"link"] = children[0]
    names[b"050"] = Node(0o040755, children=below, rows=rows)
    return Node(0o040755, children=names, rows=rows)


@given(st.lists(inodes, max_size=40))
def test_rows_are_written_as_objects_are(nodes: list[Node]) -> None:
    objects, rows = tree(nodes, as_rows=False), tree(nodes, as_rows=True)
    assert [path for path, _ in rows.walk()] == [path for path, _ in objects.walk()]
    blobs, options = [blob_entry()], BootstrapOptions(CHUNK, prefetch=[b"/000"])
    written = write_bootstrap(rows, blobs, b"", options)
    assert written == write_bootstrap(objects, blobs, b"", options)
    for packed in packed_trees(rows, rows):
        assert write_bootstrap(packed, blobs, b"", options) == written
        packed.unpack()
        assert write_bootstrap(packed, blobs, b"", options) == written
