"""Every rule of the checker, each broken on its own."""

from __future__ import annotations

import stat
import struct
import time
from collections.abc import Callable

import pytest
from tests.support.rafs import Content, blob_entry, directory, make_image

from lamina.erofs import check_tree
from lamina.erofs.check import check_bootstrap
from lamina.erofs.layout import CHUNK_ENTRY, Inode, Layout
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, write_bootstrap
from lamina.errors import FormatError

SHARED = Node(0o100644)
ENTRIES: dict[bytes, Content] = {
    b"big": b"f" * 10_000,
    b"dir/sub": directory(),
    b"dir/hard": SHARED,
    b"hard": SHARED,
    b"link": Node(0o120777, target=b"file"),
    b"many": directory(),
    b"null": Node(stat.S_IFCHR | 0o666, rdev=0x103),
    b"tiny": b"t",
} | {b"many/%0100d" % number: b"" for number in range(80)}


@pytest.fixture(scope="module")
def image() -> bytes:
    return make_image(ENTRIES, chunk_size=4096, prefetch=[b"/dir"]).bootstrap


def find(image: bytes, path: bytes) -> Inode:
    bootstrap = Bootstrap(image)
    nid = bootstrap.root_nid
    for name in path.split(b"/"):
        found = bootstrap.lookup(bootstrap.inode(nid), name)
        assert found is not None
        nid = found
    return bootstrap.inode(nid)


def changed(image: bytes, offset: int, new: bytes) -> bytes:
    return image[:offset] + new + image[offset + len(new) :]


def table_offset(image: bytes) -> int:
    return Bootstrap(image).header.extended.chunk_table_offset


def dirent_offset(image: bytes, folder: Inode, name: bytes) -> int:
    """Where the entry ``name`` is in the image, for a directory that is inline."""
    start = folder.offset + folder.inode_size + folder.xattr_size
    names = [entry.name for entry in Bootstrap(image).entries(folder)]
    return start + 12 * names.index(name)


def test_a_good_image_passes(image: bytes) -> None:
    check_bootstrap(image)


def inode_field(path: bytes, field: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda image: changed(image, find(image, path).offset + field, new)


def table_field(field: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda image: changed(image, table_offset(image) + field, new)


def at(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda image: changed(image, offset, new)


def dirent(folder: bytes, name: bytes, field: int, new: bytes) -> Callable[[bytes], bytes]:
    def change(image: bytes) -> bytes:
        inode = find(image, folder) if folder else Bootstrap(image).inode(128)
        return changed(image, dirent_offset(image, inode, name) + field, new)

    return change


def nid_bytes(image: bytes, path: bytes) -> bytes:
    return struct.pack("<Q", find(image, path).nid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at(0, b"\1"), "first 1024 bytes"),
        (at(1038, b"\x81"), "root_nid is 129"),
        (at(1040, b"\x01"), "inos is"),
        (at(1060, b"\xff"), "blocks is"),
        (at(1408, b"z"), "device slot 0: its tag"),
        (at(1408 + 64, b"\xff"), "device slot 0.*blocks"),
        (at(1408 + 68, b"\1\0\0\0"), "device slot 0.*overlaps"),
        (at(1152, b"\x94\1"), "inlined chunk digests"),
        (at(1152 + 3, b"\2"), "encrypted"),
        (at(4096 + 256, b"\1"), "prefetch table: inode"),
        (table_field(32, b"\1"), "entry 0: there is no such blob"),
        (table_field(72, b"\xff"), "entry 0: the blob has no chunk"),
        (table_field(44, bytes(4)), "entry 0: the chunk leaves"),
        (table_field(44, b"\xff\xff\xff"), "entry 0: the chunk leaves"),
        (table_field(56, b"\1"), "entry 0: the chunk is not block-aligned"),
        (table_field(48, b"\xff" * 5), "entry 0: the data leaves"),
        (table_field(80 + 72, b"\0"), "entry 1: the chunk is listed twice"),
        (table_field(80 + 56, bytes(8)), "overlaps another"),
        (table_field(44, b"\1\0\0\0"), "is not in the chunk table"),
        (inode_field(b"dir", 4, b"\xff\x81"), "inode|directory"),
        (inode_field(b"dir", 44, b"\4"), "nlink is 4, not 3"),
        (inode_field(b"hard", 44, b"\1"), "nlink is 1, but it has 2 names"),
        (inode_field(b"tiny", 44, b"\2"), "nlink is 2, but it has 1 names"),
        (inode_field(b"null", 8, b"\1"), "special file has data"),
        (inode_field(b"link", 4, b"\xed\x81"), "layout|Inode"),
        (inode_field(b"big", 16, b"\x20"), None),
        (inode_field(b"tiny", 64, b"\xff\xff"), "outside blob|not in the chunk table"),
        (inode_field(b"tiny", 68, b"\xff\xff"), "outside blob"),
        (inode_field(b"big", 8, struct.pack("<Q", 10_001)), "not in the chunk table"),
        (inode_field(b"many", 16, b"\0\0\0\0"), "data of inode .* overlaps superblocks"),
        (dirent(b"dir", b".", 0, bytes(8)), "'.' leads to 0"),
        (dirent(b"dir", b"..", 0, bytes(8)), "'..' leads to 0"),
        (dirent(b"dir", b"..", 10, b"\1"), "'..' leads to"),
        (dirent(b"", b"link", 10, b"\1"), "wrong type of inode"),
        (dirent(b"dir", b"hard", 10, b"\3"), "wrong type of inode"),
        (dirent(b"", b"tiny", 0, b"\xff" * 7), "lies outside"),
    ],
)
def test_a_broken_rule_is_named(
    image: bytes, change: Callable[[bytes], bytes], message: str | None
) -> None:
    broken = change(image)
    assert broken != image
    if message is None:
        check_bootstrap(broken)
        return
    with pytest.raises(FormatError, match=message):
        check_bootstrap(broken)


def test_names_out_of_order(image: bytes) -> None:
    root = Bootstrap(image).inode(128)
    start = root.offset + 64
    swapped = image[start : start + root.size].replace(b"link", b"zink")
    with pytest.raises(FormatError, match=r"directory 128: b'many' is out of order"):
        check_bootstrap(changed(image, start, swapped))


def test_missing_dots(image: bytes) -> None:
    folder = find(image, b"dir/sub")
    start = folder.offset + 64
    image = changed(image, find(image, b"hard").offset + 44, b"\3")
    # "." and ".." become "." and "/.", then ".-".
    with pytest.raises(FormatError, match=r"no entry b'\.\.'"):
        broken = changed(image, start + folder.size - 1, b"-")
        check_bootstrap(changed(broken, start + 12, nid_bytes(image, b"hard") + b"\x19\0\1"))


def test_a_cycle_is_found(image: bytes) -> None:
    up = dirent(b"dir", b"sub", 0, struct.pack("<Q", 128))(image)
    with pytest.raises(FormatError, match="directory 128 once more"):
        check_bootstrap(up)
    oneself = dirent(b"dir", b"sub", 0, nid_bytes(image, b"dir"))(image)
    with pytest.raises(FormatError, match="once more"):
        check_bootstrap(oneself)
    twice = dirent(b"", b"many", 0, nid_bytes(image, b"dir"))(image)
    with pytest.raises(FormatError, match="once more"):
        check_bootstrap(twice)


def test_overlapping_regions(image: bytes) -> None:
    # The number in the first directory entry of the root serves as the prefetch table.
    table = struct.pack("<QI", Bootstrap(image).inode(128).offset + 64, 4)
    with pytest.raises(FormatError, match=r"inode 128 at offset \d+ overlaps prefetch table"):
        check_bootstrap(changed(image, 1152 + 40, table))


def test_chunk_format_that_skips_addresses() -> None:
    # Two chunks in reverse order, and a format that says they are one.
    root = directory()
    assert root.children is not None
    chunks = struct.pack("<HBBIHBBI", 1, 1, 0, 1, 0, 1, 0, 0)
    root.children[b"f"] = Node(0o100644, size=8192, chunks=chunks)
    table = b"".join(
        CHUNK_ENTRY.pack(bytes(32), 0, 0, 4096, 4096, i * 4096, i * 4096, 0, i, 0) for i in (0, 1)
    )
    entry = blob_entry(
        chunk_count=2,
        uncompressed_size=8192,
        ci_offset=9000,
        ci_compressed_size=32,
        ci_uncompressed_size=32,
    )
    image = write_bootstrap(root, [entry], table, BootstrapOptions(4096))
    check_bootstrap(image)
    offset = find(image, b"f").offset
    with pytest.raises(FormatError, match="skips chunk addresses"):
        check_bootstrap(changed(image, offset + 16, b"\x21"))
    with pytest.raises(FormatError, match="chunk format"):
        check_bootstrap(changed(image, offset + 16, b"\x00"))


def test_shared_directory_data_cannot_multiply_the_work() -> None:
    """Thousands of directories that all claim the same large block of entries end at once."""
    entries: dict[bytes, Content] = {b"d%04d" % n: directory() for n in range(3000)}
    entries |= {b"big/%0200d" % n: b"" for n in range(2000)}
    data = bytearray(make_image(entries).bootstrap)
    big = find(bytes(data), b"big")
    header = data[big.offset : big.offset + 64]
    first = find(bytes(data), b"d0000").offset
    step = find(bytes(data), b"d0001").offset - first
    for number in range(3000):
        data[first + number * step : first + number * step + 64] = header
    started = time.thread_time()
    with pytest.raises(FormatError):
        check_bootstrap(bytes(data))
    assert time.thread_time() - started < 5


def test_a_full_last_block_follows_its_inode_where_the_layout_says_so() -> None:
    """A kernel looks there for it, and nowhere else."""
    names = [b"%0101d" % number for number in range(35)] + [b"z" * 102]
    image = make_image({b"full/" + name: b"" for name in names}).bootstrap
    folder = find(image, b"full")
    assert (folder.size, folder.layout) == (4096, Layout.FLAT_PLAIN)
    check_bootstrap(image)
    inline = changed(image, folder.offset, bytes([1 | Layout.FLAT_INLINE << 1]))
    with pytest.raises(FormatError, match=r"crosses a block|overlaps"):
        check_bootstrap(inline)


def test_undeclared_xattrs() -> None:
    image = make_image({b"f": Node(0o100644, xattrs={b"user.a": b"1"})}).bootstrap
    check_bootstrap(image)
    flags = image[1152] & ~0x20
    with pytest.raises(FormatError, match="extended attributes"):
        check_bootstrap(changed(image, 1152, bytes([flags])))


def test_a_root_that_is_no_directory() -> None:
    image = make_image({}).bootstrap
    with pytest.raises(FormatError, match="root is not a directory"):
        check_bootstrap(changed(image, 8192 - 4096, struct.pack("<HHH", 1, 0, 0o010644)))


def test_a_directory_that_no_path_reaches() -> None:
    check_bootstrap(make_image({b"/".join([b"d"] * 2000): b"bottom"}).bootstrap)
    with pytest.raises(FormatError, match="deeper than any path"):
        check_bootstrap(make_image({b"/".join([b"d"] * 2100): b"bottom"}).bootstrap)


def test_names_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_tree, "MAX_OPEN_LINKS", 10)
    nodes = [Node(0o100644) for _ in range(11)]
    links: dict[bytes, Content] = {
        b"%s/%d" % (d, n): nodes[n] for d in (b"a", b"b") for n in range(11)
    }
    with pytest.raises(FormatError, match="names far apart"):
        check_bootstrap(make_image(links).bootstrap)
    del links[b"a/0"], links[b"b/0"]
    check_bootstrap(make_image(links).bootstrap)


def test_a_prefetch_table_of_a_quarter_million(image: bytes) -> None:
    table = struct.pack("<Q", 4096) + struct.pack("<I", (1 << 20) + 4)
    large = changed(image, 1152 + 40, table) + bytes(2 << 20)
    with pytest.raises(FormatError, match="prefetch_table_size is 1048580"):
        Bootstrap(large)


def test_tables_in_any_order(image: bytes) -> None:
    """The check does not depend on the order of the table, nor on its being complete."""
    start = table_offset(image)
    count = Bootstrap(image).chunk_entries.count
    entries = [image[start + 80 * n : start + 80 * n + 80] for n in range(count)]
    check_bootstrap(changed(image, start, b"".join(reversed(entries))))
    twice = [entries[1], *entries[1:]]
    with pytest.raises(FormatError, match="entry 1: the chunk is listed twice"):
        check_bootstrap(changed(image, start, b"".join(twice)))
