"""The writer, read back by the reader: what goes in comes out, at the places the rules demand."""

from __future__ import annotations

import hashlib
import stat
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.rafs import Content, blob_entry, directory, make_image, make_tree

from lamina.erofs.check import check_bootstrap
from lamina.erofs.layout import (
    BLOB_ENTRY,
    ROOT_NID,
    BlobFeature,
    ChunkIndex,
    Inode,
    Layout,
    SuperFlag,
)
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, write_bootstrap
from lamina.errors import FormatError

CHUNK = 4096
names = st.binary(min_size=1, max_size=60).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.bb", b"trusted.t", b"security.capability"]),
    st.binary(max_size=40),
    max_size=3,
)
numbers = st.integers(0, 0xFFFFFFFF)
common = {
    "uid": numbers,
    "gid": numbers,
    "mtime": st.integers(-(1 << 63), (1 << 63) - 1),
    "mtime_ns": st.integers(0, 999_999_999),
    "xattrs": xattrs,
}
permissions = st.integers(0, 0o7777)
links = st.builds(
    Node,
    mode=permissions.map(lambda mode: mode | stat.S_IFLNK),
    target=st.one_of(
        st.binary(min_size=1, max_size=50), st.integers(1, 4096).map(lambda size: b"t" * size)
    ).filter(lambda target: b"\0" not in target),
    **common,
)
specials = st.builds(
    Node,
    mode=st.builds(
        lambda kind, mode: kind | mode,
        st.sampled_from([stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]),
        permissions,
    ),
    rdev=numbers,
    **common,
)
contents: st.SearchStrategy[Content] = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 3 * CHUNK + 5).map(lambda size: b"c" * size),
    links,
    specials,
)


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Content]:
    """Path -> content: a few levels deep, without a file where a directory stands."""
    entries: dict[bytes, Content] = {}
    folders = [b""]
    for _ in range(draw(st.integers(0, 4))):
        folder = draw(st.sampled_from(folders)) + draw(names)
        if not any(folder == known.rstrip(b"/") for known in folders):
            entries[folder] = directory(
                draw(permissions), **{name: draw(strategy) for name, strategy in common.items()}
            )
            folders.append(folder + b"/")
    for _ in range(draw(st.integers(0, 12))):
        path = draw(st.sampled_from(folders)) + draw(names)
        if path not in entries:
            entries[path] = draw(contents)
    return entries


def walk(bootstrap: Bootstrap) -> dict[bytes, Inode]:
    found = {b"": bootstrap.inode(bootstrap.root_nid)}
    pending = [b""]
    while pending:
        here = pending.pop()
        for entry in bootstrap.readdir(found[here]):
            path = here + b"/" + entry.name if here else entry.name
            found[path] = bootstrap.inode(entry.nid)
            assert bootstrap.lookup(found[here], entry.name) == entry.nid
            if stat.S_ISDIR(found[path].mode):
                pending.append(path)
    return found


@settings(max_examples=150, deadline=None)
@given(trees())
def test_round_trip(entries: dict[bytes, Content]) -> None:
    image = make_image(entries, chunk_size=CHUNK)
    bootstrap = Bootstrap(image.bootstrap)
    check_bootstrap(image.bootstrap)
    expected = dict(image.root.walk())
    found = walk(bootstrap)
    assert found.keys() == expected.keys()
    assert bootstrap.inode_count == len(expected)
    for path, node in expected.items():
        inode = found[path]
        assert (inode.mode, inode.uid, inode.gid) == (node.mode, node.uid, node.gid)
        assert (inode.mtime, inode.mtime_ns) == (node.mtime, node.mtime_ns)
        assert bootstrap.xattrs(inode) == node.xattrs
        kind = stat.S_IFMT(node.mode)
        if kind == stat.S_IFLNK:
            assert bootstrap.readlink(inode) == node.target
        elif kind == stat.S_IFREG:
            assert inode.size == node.size
            assert bytes(bootstrap.chunk_array(inode)) == node.chunks
        elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
            assert inode.rdev == node.rdev
        assert inode.nlink == (
            1
            if node.children is None
            else 2 + sum(child.children is not None for child in node.children.values())
        )
    has_xattrs = any(node.xattrs for node in expected.values())
    assert bool(bootstrap.flags & SuperFlag.HAS_XATTR) == has_xattrs
    assert make_image(entries, chunk_size=CHUNK).bootstrap == image.bootstrap


def test_directory_over_several_blocks_among_odd_names() -> None:
    entries: dict[bytes, Content] = {b"d/%04d-%s" % (n, b"x" * (n % 90)): b"" for n in range(700)}
    entries |= {b"d/#first": b"", b"d/.-between": b"", b"d/...": b"", b"d/\xff\xfe": b""}
    image = make_image(entries)
    check_bootstrap(image.bootstrap)
    bootstrap = Bootstrap(image.bootstrap)
    found = walk(bootstrap)
    assert len(found) == 706
    assert found[b"d"].size > 10 * 4096
    raw = [entry.name for entry in bootstrap.entries(found[b"d"])]
    assert raw[:4] == [b"#first", b".", b".-between", b".."]
    assert bootstrap.lookup(found[b"d"], b"..") == bootstrap.root_nid
    assert bootstrap.lookup(found[b"d"], b".") == found[b"d"].nid
    assert bootstrap.lookup(found[b"d"], b"0700") is None


def test_hard_links_share_an_inode() -> None:
    tree: dict[bytes, Content] = {b"a/one": b"data", b"b/x": b""}
    image_nodes = make_tree(tree, CHUNK)[0]
    assert image_nodes.children is not None
    shared = Node(0o100600)
    pipe = Node(stat.S_IFIFO | 0o600)
    image = make_image(
        {b"a/one": shared, b"b/two": shared, b"three": shared, b"p": pipe, b"q": pipe}
    )
    check_bootstrap(image.bootstrap)
    found = walk(Bootstrap(image.bootstrap))
    assert found[b"a/one"] == found[b"b/two"] == found[b"three"]
    assert found[b"three"].nlink == 3
    assert found[b"p"].nlink == found[b"q"].nlink == 2
    assert Bootstrap(image.bootstrap).inode_count == 8


def test_inline_data_never_crosses_a_block() -> None:
    entries: dict[bytes, Content] = {}
    for size in (1, 63, 64, 65, 2000, 4031, 4032, 4033, 4095, 4096):
        entries[b"l%04d" % size] = Node(0o120777, target=b"a" * size)
        entries[b"x%04d" % size] = Node(0o120777, target=b"b" * size, xattrs={b"user.k": b"v" * 9})
    image = make_image(entries)
    check_bootstrap(image.bootstrap)
    bootstrap = Bootstrap(image.bootstrap)
    for path, inode in walk(bootstrap).items():
        if not path:
            continue
        assert bootstrap.readlink(inode) == entries[path].target  # type: ignore[union-attr]
        start = inode.offset + inode.inode_size + inode.xattr_size
        fits = inode.inode_size + inode.xattr_size + inode.size <= 4096 and inode.size < 4096
        assert inode.layout == (Layout.FLAT_INLINE if fits else Layout.FLAT_PLAIN)
        if fits:
            assert start // 4096 == (start + inode.size - 1) // 4096


def test_consecutive_chunks_become_one_for_the_kernel() -> None:
    image = make_image({b"big": b"z" * (5 * CHUNK + 1), b"one": b"y" * CHUNK}, chunk_size=CHUNK)
    found = walk(Bootstrap(image.bootstrap))
    assert found[b"big"].raw == 0x20 | 3
    assert found[b"one"].raw == 0x20
    assert len(list(Bootstrap(image.bootstrap).chunks(found[b"big"]))) == 6
    scattered = ChunkIndex(0, 0, 0).pack() + ChunkIndex(0, 1, 2).pack()
    other_blob = ChunkIndex(0, 0, 0).pack() + ChunkIndex(1, 0, 1).pack()
    for chunks in (scattered, other_blob):
        root = directory()
        assert root.children is not None
        root.children[b"f"] = Node(0o100644, size=2 * CHUNK, chunks=chunks)
        blobs = [
            blob_entry(blob_id=letter * 64, uncompressed_size=1 << 20) for letter in ("a", "b")
        ]
        data = write_bootstrap(root, blobs, b"", BootstrapOptions(CHUNK))
        assert walk(Bootstrap(data))[b"f"].raw == 0x20


def test_big_chunk_numbers_and_blob_numbers() -> None:
    index = ChunkIndex(253, 0xFFFFFE, 0xFFFFFFFE)
    root = directory()
    assert root.children is not None
    root.children[b"f"] = Node(0o100644, size=5, chunks=index.pack())
    blobs = [blob_entry(blob_id=f"{number:064x}") for number in range(254)]
    data = write_bootstrap(root, blobs, b"", BootstrapOptions())
    bootstrap = Bootstrap(data)
    assert list(bootstrap.chunks(walk(bootstrap)[b"f"])) == [index]
    assert bootstrap.device_ids[253] == f"{253:064x}"
    assert [blob.index for blob in bootstrap.blobs] == list(range(254))
    with pytest.raises(FormatError, match="255 blobs"):
        write_bootstrap(root, [blob_entry()] * 255, b"", BootstrapOptions())


def test_image_without_blobs() -> None:
    image = make_image({b"empty": b"", b"l": Node(0o120777, target=b"x")}, prefetch=[b"/"])
    check_bootstrap(image.bootstrap)
    bootstrap = Bootstrap(image.bootstrap)
    assert bootstrap.blobs == ()
    assert bootstrap.header.superblock.meta_block == 0
    assert bootstrap.header.extended.blob_table_offset == 4096
    assert bootstrap.header.superblock.blocks == 0
    assert bootstrap.prefetch_nids == ()
    assert image.entry is None
    assert image.meta == b""


def test_prefetch_names_what_is_there_once() -> None:
    entries: dict[bytes, Content] = {b"a/b/c": b"1", b"a/d": b"2", b"e": b"3"}
    paths = [b"/missing", b"/a/b", b"e", b"/a/b/c", b"/a//d/", b"/e/f"]
    image = make_image(entries, prefetch=paths)
    found = walk(Bootstrap(image.bootstrap))
    wanted = [found[b"a/b"].nid, found[b"e"].nid, found[b"a/d"].nid]
    assert list(Bootstrap(image.bootstrap).prefetch_nids) == wanted
    everything = make_image(entries, prefetch=[b"/", b"/e"]).bootstrap
    assert Bootstrap(everything).prefetch_nids == (ROOT_NID,)


def test_mapped_addresses_follow_each_other() -> None:
    blobs = [
        blob_entry(blob_id="a" * 64, uncompressed_size=3 << 20),
        blob_entry(blob_id="b" * 64, uncompressed_size=4096),
    ]
    data = write_bootstrap(directory(), blobs, b"", BootstrapOptions())
    devices = Bootstrap(data).header.devices
    assert [(slot.blocks, slot.mapped_block * 4096) for slot in devices] == [
        (768, 512 << 10),
        (1, (512 << 10) + (3 << 20)),
    ]
    assert Bootstrap(data).header.superblock.blocks == 769


def test_superblock_flags_follow_the_blobs() -> None:
    inlined = 0x70000001 | BlobFeature.INLINED_CHUNK_DIGEST
    for features, expected in ((inlined, True), (0x70000001, False)):
        data = write_bootstrap(
            directory(), [blob_entry(features=features)], b"", BootstrapOptions()
        )
        flags = Bootstrap(data).flags
        assert bool(flags & SuperFlag.INLINED_CHUNK_DIGEST) == expected
        assert flags & SuperFlag.EXPLICIT_UID_GID
        assert flags & SuperFlag.ENCRYPTION_NONE


def test_blob_entry_is_stored_whole() -> None:
    entry = blob_entry(
        toc_size=1152, toc_digest=b"\x11" * 32, meta_digest=b"\x22" * 32, meta_size=77
    )
    data = write_bootstrap(directory(), [entry], b"", BootstrapOptions())
    assert Bootstrap(data).blobs == (entry,)
    assert len(entry.pack()) == BLOB_ENTRY.size == 256


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node(0o100644, size=1), "0 chunk indexes for 1 bytes"),
        (Node(0o100644, size=0, chunks=bytes(8)), "1 chunk indexes"),
        (Node(0o120777), "link target of 0"),
        (Node(0o120777, target=b"x" * 4097), "link target of 4097"),
        (Node(0o120777, target=b"x\0"), "zero byte"),
        (Node(0o644), "mode"),
        (Node(0o040755), "mode"),
        (Node(0o100644, uid=1 << 32), "argument out of range|format requires"),
        (Node(0o100644, mtime=1 << 63), "argument out of range|format requires|int too large"),
        (Node(0o100644, xattrs={b"odd.x": b""}), "namespace"),
    ],
)
def test_what_cannot_be_stored_is_named(node: Node, message: str) -> None:
    root = directory()
    assert root.children is not None
    root.children[b"culprit"] = node
    with pytest.raises(FormatError, match=f"culprit.*({message})"):
        write_bootstrap(root, [], b"", BootstrapOptions())


def test_directories_have_one_name() -> None:
    shared = directory()
    with pytest.raises(FormatError, match="two names"):
        make_image({b"a": shared, b"b": shared})
    loop = directory()
    assert loop.children is not None
    loop.children[b"self"] = loop
    with pytest.raises(FormatError, match="two names"):
        write_bootstrap(loop, [], b"", BootstrapOptions())


@pytest.mark.parametrize("chunk_size", [0, 2048, 5000, 32 << 20])
def test_impossible_chunk_sizes(chunk_size: int) -> None:
    with pytest.raises(FormatError, match="power of two"):
        write_bootstrap(directory(), [], b"", BootstrapOptions(chunk_size))


def test_deep_trees_need_no_recursion() -> None:
    image = make_image({b"/".join([b"d"] * 2000): b"bottom"})
    check_bootstrap(image.bootstrap)
    assert len(walk(Bootstrap(image.bootstrap))) == 2001


def test_opening_costs_nothing_per_file() -> None:
    entries: dict[bytes, Content] = {b"d%d/f%d" % (n % 50, n): b"" for n in range(20_000)}
    data = make_image(entries).bootstrap
    tracemalloc.start()
    bootstrap = Bootstrap(data)
    folder = bootstrap.lookup(bootstrap.inode(bootstrap.root_nid), b"d7")
    assert folder is not None
    assert bootstrap.lookup(bootstrap.inode(folder), b"f19957") is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10


def test_golden_bytes() -> None:
    """The same tree gives the same bytes in every version; a change here changes every image."""
    entries: dict[bytes, Content] = {
        b"many/%03d" % number: Node(0o100644, uid=number, mtime=number) for number in range(500)
    }
    entries |= {
        b"dir": directory(0o1777, xattrs={b"user.b": b"2", b"user.a": b"1"}),
        b"dir/link": Node(0o120777, target=b"t" * 4090),
        b"dir/null": Node(0o020666, rdev=0x103, mtime_ns=5),
        b"file": b"content",
        b"large": b"content" * 5000,
    }
    root, chunks = make_tree(entries, CHUNK)
    blob = blob_entry(chunk_count=len(chunks), uncompressed_size=1 << 20)
    options = BootstrapOptions(CHUNK, prefetch=[b"/dir"])
    data = write_bootstrap(root, [blob], bytes(80 * len(chunks)), options)
    assert hashlib.sha256(data).hexdigest() == (
        "aff5c8bc86e30eceb97d86b4aa5f5c0b83418f8743997b20c55c3503b19c5e30"
    )
