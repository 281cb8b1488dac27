"""A bootstrap in parts: nothing that did not come is looked at, and what is seen is sound."""

from __future__ import annotations

import random
import stat
from collections.abc import Iterator

import pytest
from tests.support.rafs import Content, directory, make_image
from tests.support.whole_bootstrap import Rest

from lamina.erofs.check import check_bootstrap
from lamina.erofs.check_part import check_part
from lamina.erofs.layout import CHUNK_INDEX, DIRENT, Inode
from lamina.erofs.partial import NotHereError, PartialBootstrap, fixed_parts
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import FormatError

PAGE = 4096
ENTRIES: dict[bytes, Content] = {
    b"big": b"f" * 50_000,
    b"dir/sub/deep/leaf": b"leaf",
    b"dir/sub/other": b"o" * 9000,
    b"link": Node(0o120777, target=b"file"),
    b"noted": Node(0o100644, xattrs={b"user.note": b"n" * 300}),
    b"null": Node(stat.S_IFCHR | 0o666, rdev=0x103),
    b"zoo": directory(),
} | {b"many/%0100d" % number: b"%d" % number for number in range(300)}


@pytest.fixture(scope="module")
def image() -> bytes:
    return make_image(ENTRIES, chunk_size=4096, prefetch=[b"/dir"]).bootstrap


def fixed(image: bytes) -> set[int]:
    bootstrap = Bootstrap(image)
    root = bootstrap.inode(bootstrap.root_nid)
    ranges = [*fixed_parts(bootstrap), (root.offset, 64)]
    return {
        page
        for start, size in ranges
        for page in range(start // PAGE, (start + size - 1) // PAGE + 1)
    }


def partial(image: bytes, pages: set[int]) -> PartialBootstrap:
    view = memoryview(image)
    return PartialBootstrap(
        len(image), {page: view[page * PAGE : (page + 1) * PAGE] for page in pages}
    )


def all_pages(image: bytes) -> set[int]:
    return set(range(len(image) // PAGE))


def tree(bootstrap: Bootstrap) -> Iterator[tuple[bytes, Inode, object]]:
    pending = [(b"", bootstrap.root_nid)]
    while pending:
        path, nid = pending.pop()
        inode = bootstrap.inode(nid)
        content: object = bootstrap.xattrs(inode)
        if stat.S_ISREG(inode.mode):
            content = list(bootstrap.chunks(inode))
        elif stat.S_ISLNK(inode.mode):
            content = bootstrap.readlink(inode)
        elif stat.S_ISDIR(inode.mode):
            names = list(bootstrap.names(inode))
            assert all(bootstrap.lookup(inode, name) == child for name, child in names)
            pending += [(path + b"/" + name, child) for name, child in names]
        yield path, inode, content


def test_any_part_of_a_sound_image_reads_as_the_whole(image: bytes) -> None:
    expected = list(tree(Bootstrap(image)))
    chance = random.Random(1)
    kept = fixed(image)
    for _ in range(60):
        share = chance.random()
        pages = kept | {page for page in all_pages(image) if chance.random() < share}
        bootstrap = partial(image, pages)
        try:
            check_part(bootstrap)
        except NotHereError:
            # Attributes that came in part.
            continue
        rest = Rest(image)
        bootstrap.complete_by(rest)
        assert list(tree(bootstrap)) == expected
        assert rest.asked == (pages != all_pages(image) and rest.asked)
        assert bytes(bootstrap.view) == image


def test_nothing_is_asked_for_that_came(image: bytes) -> None:
    bootstrap = partial(image, all_pages(image))
    check_part(bootstrap)
    assert list(tree(bootstrap)) == list(tree(Bootstrap(image)))
    found = list(bootstrap.entries_here(0))
    assert found == list(Bootstrap(image).chunk_entries)
    assert [bootstrap.chunk_entry(0, entry.index) for entry in found] == found


def test_nothing_is_asked_for_a_range_of_no_bytes(image: bytes) -> None:
    bootstrap = partial(image, fixed(image))
    assert bootstrap.has(5, 0) and bootstrap.has(len(image) + 5, 0)
    assert not bootstrap.has(len(image) + 5, 1)


def test_entries_that_came_in_part_are_not_there(image: bytes) -> None:
    table = Bootstrap(image).header.extended
    first, end = table.chunk_table_offset, table.chunk_table_offset + table.chunk_table_size
    entries = list(Bootstrap(image).chunk_entries)
    for page in range(first // PAGE, -(-end // PAGE)):
        bootstrap = partial(image, fixed(image) | {page})
        here = [
            entry for number, entry in enumerate(entries) if bootstrap.has(first + number * 80, 80)
        ]
        assert here
        assert list(bootstrap.entries_here(0)) == here


def test_without_the_fixed_parts_there_is_none(image: bytes) -> None:
    for page in fixed(image):
        with pytest.raises((NotHereError, FormatError)):
            check_part(partial(image, all_pages(image) - {page}))


def test_what_is_wrong_with_the_whole_ends_all_reading(image: bytes) -> None:
    bootstrap = partial(image, all_pages(image))
    rest = Rest(image)
    bootstrap.complete_by(rest)
    root = bootstrap.inode(bootstrap.root_nid)
    rest.problem = FormatError("no")
    with pytest.raises(FormatError, match="no"):
        bootstrap.inode(root.nid)
    with pytest.raises(FormatError, match="no"):
        bootstrap.lookup(root, b"big")


def find(image: bytes, path: bytes) -> Inode:
    bootstrap = Bootstrap(image)
    nid = bootstrap.root_nid
    for name in path.split(b"/"):
        found = bootstrap.lookup(bootstrap.inode(nid), name)
        assert found is not None
        nid = found
    return bootstrap.inode(nid)


def led(image: bytes, folder: bytes, name: bytes, nid: int, kind: int = 2) -> bytes:
    """The image with the entry *name* of *folder* leading elsewhere."""
    inode = find(image, folder)
    changed = bytearray(image)
    names = [entry.name for entry in Bootstrap(image).entries(inode)]
    place = Bootstrap(image).data_extent(inode, 0, PAGE)[0] + names.index(name) * DIRENT.size
    offset = DIRENT.unpack_from(image, place)[1]
    DIRENT.pack_into(changed, place, nid, offset, kind)
    return bytes(changed)


def hostile(image: bytes) -> dict[str, bytes]:
    root = Bootstrap(image).root_nid
    sub, big, null = find(image, b"dir/sub"), find(image, b"big"), find(image, b"null")
    array = big.offset + big.inode_size + big.xattr_size + 7 & -8
    outside = bytearray(image)
    CHUNK_INDEX.pack_into(outside, array, 0, 1, 0, 1 << 30)
    no_device = bytearray(image)
    CHUNK_INDEX.pack_into(no_device, array, 0, 9, 0, 0)
    file_as_folder = led(image, b"dir/sub", b"deep", big.nid)
    mapped = bytearray(image)
    # A kernel would read the names of directories from the blob.
    mapped[1408 + 68] = 1
    no_name = bytearray(image)
    no_name[big.offset + 44 : big.offset + 48] = bytes(4)
    data = bytearray(image)
    # The size of a device.
    data[null.offset + 8 : null.offset + 16] = (100).to_bytes(8, "little")
    return {
        "root": led(image, b"dir/sub", b"deep", root),
        "parent": led(image, b"dir/sub", b"deep", find(image, b"dir").nid),
        "itself": led(image, b"dir/sub", b"deep", sub.nid),
        "file as folder": file_as_folder,
        "folder as file": led(image, b"dir/sub", b"other", find(image, b"zoo").nid, 1),
        "dots": led(image, b"dir/sub", b"..", sub.nid),
        "chunk outside": bytes(outside),
        "no device": bytes(no_device),
        "special with data": bytes(data),
        "blob over metadata": bytes(mapped),
        "no names": bytes(no_name),
        "names too many": led(image, b"dir/sub", b"other", big.nid, 1),
    }


@pytest.mark.parametrize(
    "what",
    [
        *("root", "parent", "itself", "file as folder", "folder as file", "dots"),
        *("chunk outside", "no device", "special with data", "blob over metadata"),
        *("no names", "names too many"),
    ],
)
def test_what_no_kernel_should_see_is_refused(image: bytes, what: str) -> None:
    bad = hostile(image)[what]
    with pytest.raises(FormatError):
        check_bootstrap(bad)
    with pytest.raises(FormatError):
        check_part(partial(bad, all_pages(bad)))


def test_a_folder_with_two_names_far_apart_is_refused_where_both_came(image: bytes) -> None:
    bad = led(image, b"dir/sub", b"deep", find(image, b"zoo").nid)
    with pytest.raises(FormatError, match="once more"):
        check_part(partial(bad, all_pages(bad)))


def test_any_bytes_are_judged_in_bounded_time(image: bytes) -> None:
    chance = random.Random(7)
    for _ in range(150):
        bad = bytearray(image)
        for _ in range(chance.randrange(1, 30)):
            bad[chance.randrange(1024, len(bad))] = chance.randrange(256)
        pages = fixed(image) | {page for page in all_pages(image) if chance.random() < 0.7}
        try:
            check_part(partial(bytes(bad), pages))
        except (FormatError, NotHereError):
            continue
