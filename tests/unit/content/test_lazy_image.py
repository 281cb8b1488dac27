from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.asked_once import asked_once
from tests.support.native_images import BuiltImage, MemorySource, build_image, some_bytes
from tests.support.opened_blobs import OpenedBlobs

from lamina.blob.table import ChunkTable
from lamina.content.lazy_blob import LazyBlob
from lamina.content.lazy_image import LazyImage
from lamina.erofs.layout import Inode
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import Error, FormatError, NotFoundError, UnsupportedError
from lamina.image.compare import compare
from lamina.image.errors import (
    FileKindError,
    IsDirectoryError,
    LinkLoopError,
    NotDirectoryError,
    PathNotFoundError,
)
from lamina.store.node import NodeStore


def link(target: bytes) -> Node:
    return Node(stat.S_IFLNK | 0o777, size=len(target), target=target)


SHARED = Node(stat.S_IFREG | 0o600)
CONTENT = some_bytes(20_000, 1)
NODES = {
    b"dir/relative": link(b"../file"),
    b"dir/absolute": link(b"/dir/sub/deep"),
    b"dir/outside": link(b"../../../../file"),
    b"dir/to-dir": link(b"sub"),
    b"dangling": link(b"nowhere"),
    b"loop-a": link(b"loop-b"),
    b"loop-b": link(b"loop-a"),
    b"null": Node(stat.S_IFCHR | 0o666, rdev=1 << 8 | 3),
    b"pipe": Node(stat.S_IFIFO | 0o644),
    b"empty-dir": Node(stat.S_IFDIR | 0o1777, uid=1000, gid=2000, mtime=-5, children={}),
    b"attributed": Node(
        stat.S_IFREG | 0o4755, xattrs={b"user.a": b"1", b"security.capability": b"\0\1"}
    ),
    b"hard-1": SHARED,
    b"hard-2": SHARED,
    b"\xff\xfe": Node(stat.S_IFREG | 0o644),
    **{b"chain/%02d" % n: link(b"%02d" % (n + 1)) for n in range(41)},
    b"chain/41": Node(stat.S_IFREG | 0o644),
}


def open_built(built: BuiltImage, folder: Path) -> Iterator[LazyImage]:
    with Bootstrap(built.bootstrap) as bootstrap:
        entry = bootstrap.blobs[0]
        table = ChunkTable.from_meta(built.meta, entry)
        cache = NodeStore(folder).blob(built.blob_id, entry.uncompressed_size, entry.chunk_count)
        source = MemorySource(built)
        with LazyBlob(table, bootstrap.chunk_digests(0), asked_once(source), cache) as blob:
            yield LazyImage(bootstrap, OpenedBlobs([blob]))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LazyImage]:
    files = {b"file": CONTENT, b"dir/sub/deep": b"deep content", b"none": b""}
    built = build_image(files, nodes=NODES, pack_size=4096)
    yield from open_built(built, tmp_path_factory.mktemp("store"))


def test_root(image: LazyImage) -> None:
    assert image.root.path == b"/"
    assert image.root.is_dir
    assert image.stat("/") == image.stat("") == image.stat(b".") == image.root


@pytest.mark.parametrize("path", ["file", "/file", "//file", "./file", "dir/../file", "/../file"])
def test_one_file_has_many_spellings(image: LazyImage, path: str) -> None:
    found = image.stat(path)
    assert found.path == b"/file"
    assert found.size == len(CONTENT)
    assert found.is_file
    assert stat.S_IMODE(found.mode) == 0o644
    assert (found.mtime, found.mtime_ns) == (1_700_000_000, 0)


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("dir/relative", b"/file"),
        ("dir/absolute", b"/dir/sub/deep"),
        ("dir/outside", b"/file"),
        ("dir/to-dir/deep", b"/dir/sub/deep"),
        ("dir/to-dir/../relative", b"/file"),
        ("dir/to-dir/", b"/dir/sub"),
        ("chain/02", b"/chain/41"),
    ],
)
def test_links_are_followed_inside_the_image(image: LazyImage, path: str, leads_to: bytes) -> None:
    assert image.stat(path).path == leads_to


def test_a_link_itself(image: LazyImage) -> None:
    found = image.stat("dir/to-dir", follow_symlinks=False)
    assert found.is_symlink
    assert found.path == b"/dir/to-dir"
    assert found.size == 3
    assert image.readlink("dir/to-dir") == image.readlink(found) == b"sub"
    assert image.stat("dangling", follow_symlinks=False).is_symlink
    assert image.stat("dir/to-dir/", follow_symlinks=False).is_dir


@pytest.mark.parametrize(
    ("path", "kind", "builtin", "number"),
    [
        ("absent", PathNotFoundError, FileNotFoundError, errno.ENOENT),
        ("dangling", PathNotFoundError, FileNotFoundError, errno.ENOENT),
        ("file/x", NotDirectoryError, NotADirectoryError, errno.ENOTDIR),
        ("file/", NotDirectoryError, NotADirectoryError, errno.ENOTDIR),
        ("file/..", NotDirectoryError, NotADirectoryError, errno.ENOTDIR),
        ("loop-a", LinkLoopError, OSError, errno.ELOOP),
        ("chain/00", LinkLoopError, OSError, errno.ELOOP),
    ],
)
def test_what_cannot_be_found(
    image: LazyImage, path: str, kind: type[Error], builtin: type[OSError], number: int
) -> None:
    with pytest.raises(kind) as caught:
        image.stat(path)
    assert isinstance(caught.value, builtin)
    assert isinstance(caught.value, NotFoundError)
    assert caught.value.errno == number
    assert caught.value.exit_code == 7
    assert path.rstrip("/.") in str(caught.value)


def test_forty_links_are_the_limit_as_in_linux(image: LazyImage, tmp_path: Path) -> None:
    for number in range(41):
        os.symlink(f"{number + 1:02}", tmp_path / f"{number:02}")
    (tmp_path / "41").write_bytes(b"")
    assert os.stat(tmp_path / "01")
    assert image.stat("chain/01").is_file
    with pytest.raises(OSError, match="Too many levels"):
        os.stat(tmp_path / "00")


def test_scandir(image: LazyImage) -> None:
    entries = dict(image.scandir("dir"))
    assert list(entries) == [b"absolute", b"outside", b"relative", b"sub", b"to-dir"]
    assert entries[b"sub"].path == b"/dir/sub"
    assert entries[b"sub"] == image.stat("dir/sub")
    assert [name for name, _ in image.scandir(image.stat("dir/to-dir"))] == [b"deep"]
    assert list(image.scandir("empty-dir")) == []
    with pytest.raises(NotADirectoryError):
        list(image.scandir("file"))


def test_walk_has_parents_first_and_names_in_byte_order(image: LazyImage) -> None:
    paths = [path for path, _ in image.walk()]
    assert paths[0] == b"/"
    assert len(paths) == len(set(paths))
    assert [path for path in paths if path.startswith(b"/dir")] == [
        b"/dir",
        b"/dir/absolute",
        b"/dir/outside",
        b"/dir/relative",
        b"/dir/sub",
        b"/dir/sub/deep",
        b"/dir/to-dir",
    ]
    assert all(path == stat.path for path, stat in image.walk())
    assert [path for path, _ in image.walk("dir/sub")] == [b"/dir/sub", b"/dir/sub/deep"]
    assert [path for path, _ in image.walk("file")] == [b"/file"]
    assert b"/\xff\xfe" in paths
    assert image.stat(os.fsdecode(b"/\xff\xfe")) == image.stat(b"\xff\xfe")


def test_everything_stat_knows(image: LazyImage) -> None:
    directory = image.stat("empty-dir")
    assert stat.S_IMODE(directory.mode) == 0o1777
    assert (directory.uid, directory.gid, directory.mtime) == (1000, 2000, -5)
    device = image.stat("null")
    assert device.is_device
    assert device.device == (1, 3)
    assert not image.stat("pipe").is_device
    first, second = image.stat("hard-1"), image.stat("hard-2")
    assert first.ino == second.ino
    assert first.nlink == 2
    assert len({found.ino for _, found in image.walk()}) == sum(1 for _ in image.walk()) - 1


def test_extended_attributes(image: LazyImage) -> None:
    assert image.xattrs("attributed") == {b"user.a": b"1", b"security.capability": b"\0\1"}
    assert image.xattrs("dir/to-dir") == {}


def test_reading_a_whole_file(image: LazyImage) -> None:
    with image.open("file") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.read() == CONTENT
        assert file.read() == b""
    with image.open("dir/absolute") as file:
        assert file.read() == b"deep content"
    with image.open(image.stat("none")) as file:
        assert file.read() == b""


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 1), (4095, 2), (4096, 4096), (1, 19_999), (19_999, 10), (20_000, 1), (30_000, 1), (5, 0)],
)
def test_pread(image: LazyImage, offset: int, size: int) -> None:
    assert image.pread(image.stat("file"), offset, size) == CONTENT[offset : offset + size]


def test_file_objects_seek(image: LazyImage) -> None:
    with image.open("file") as file:
        assert file.seekable()
        assert file.seek(-10, os.SEEK_END) == len(CONTENT) - 10
        assert file.read() == CONTENT[-10:]
        assert file.seek(7) == 7
        assert file.seek(3, os.SEEK_CUR) == 10
        assert file.read(5) == CONTENT[10:15]
        assert file.tell() == 15
        assert file.seek(100_000) == 100_000
        assert file.read() == b""
        with pytest.raises(ValueError, match="before the start"):
            file.raw.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.raw.seek(0, 9)
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with pytest.raises(ValueError, match="closed"):
        file.raw.tell()


def test_reading_the_rest_takes_few_requests(tmp_path: Path) -> None:
    content = some_bytes(300_000, 5)
    for image in open_built(build_image({b"f": content}), tmp_path):
        with image.open("f") as file:
            assert file.read(10) == content[:10]
            assert file.read() == content[10:]
            assert file.read() == b""
        # A buffer of 128 KiB first, then all that is left.
        assert image.statistics.requests == 2


def test_file_objects_iterate_lines(image: LazyImage) -> None:
    with image.open("dir/sub/deep") as file, io.TextIOWrapper(file) as text:
        assert list(text) == ["deep content"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("dir", IsDirectoryError), ("null", FileKindError), ("pipe", FileKindError)],
)
def test_what_has_no_content(image: LazyImage, path: str, kind: type[Error]) -> None:
    with pytest.raises(kind):
        image.open(path)
    with pytest.raises(kind):
        image.pread(image.stat(path), 0, 1)
    with pytest.raises(FileKindError, match="not a symbolic link"):
        image.readlink(path)


def test_builtin_kinds_of_the_errors(image: LazyImage) -> None:
    with pytest.raises(IsADirectoryError):
        image.open("dir")
    with pytest.raises(FileNotFoundError):
        image.open("absent")


def test_chunks(image: LazyImage) -> None:
    chunks = list(image.chunks("file"))
    assert [chunk.file_offset for chunk in chunks] == [0, 4096, 8192, 12288, 16384]
    assert sum(chunk.size_bytes for chunk in chunks) == len(CONTENT)
    assert chunks[1].blob_offset == chunks[0].blob_offset + 4096
    assert list(image.chunks("file", 1, 2)) == chunks[1:3]
    assert list(image.chunks("none")) == []


def test_an_image_in_memory_has_no_file_and_no_configuration(image: LazyImage) -> None:
    with pytest.raises(UnsupportedError, match="from memory"):
        _ = image.bootstrap_path
    assert image.manifest is None
    assert image.config.config.cmd == ()
    assert image.statistics.requests == image.blobs[0].statistics.requests


def test_a_directory_with_two_names_ends_a_walk(tmp_path: Path) -> None:
    shared = Node(stat.S_IFDIR | 0o755, children={b"f": Node(stat.S_IFREG | 0o644)})
    built = build_image(
        {b"x": b"1"}, nodes={b"a": shared, b"b": Node(stat.S_IFDIR | 0o755, children={})}
    )
    boot = bytearray(built.bootstrap)
    with Bootstrap(built.bootstrap) as bootstrap:
        root = bootstrap.inode(bootstrap.root_nid)
        first, second = (bootstrap.lookup(root, name) for name in (b"a", b"b"))
        assert first is not None
        assert second is not None
        # Entries are the nid first, 8 bytes (RAFS v6 §1.13).
        at = boot.find(second.to_bytes(8, "little"), root.offset)
        boot[at : at + 8] = first.to_bytes(8, "little")
    forged = BuiltImage(bytes(boot), built.blob_id, built.blob, built.meta, built.contents)
    for image in open_built(forged, tmp_path):
        with pytest.raises(FormatError, match="another name"):
            list(image.walk())


def child_of_root(bootstrap: Bootstrap, name: bytes) -> Inode:
    nid = bootstrap.lookup(bootstrap.inode(bootstrap.root_nid), name)
    assert nid is not None
    return bootstrap.inode(nid)


def test_directories_on_top_of_each_other_end_a_walk(tmp_path: Path) -> None:
    """Each takes a few bytes of the metadata, and all say that they have the same long list."""
    folders = {b"%02d" % n: Node(stat.S_IFDIR | 0o755, children={}) for n in range(50)}
    files = {b"long/%03d" % n: b"" for n in range(540)}
    built = build_image({**files, b"x": b"1"}, nodes=folders)
    boot = bytearray(built.bootstrap)
    with Bootstrap(built.bootstrap) as bootstrap:
        long = child_of_root(bootstrap, b"long")
        for name in folders:
            folder = child_of_root(bootstrap, name)
            assert folder.inode_size == long.inode_size
            for start, end in ((0, 4), (8, 20)):
                # Format with layout, size, and where the data is: not the number (RAFS v6 §1.5).
                boot[folder.offset + start : folder.offset + end] = built.bootstrap[
                    long.offset + start : long.offset + end
                ]
    forged = BuiltImage(bytes(boot), built.blob_id, built.blob, built.meta, built.contents)
    for image in open_built(forged, tmp_path):
        with pytest.raises(FormatError, match="on top of each other"):
            list(image.walk())
        with pytest.raises(FormatError, match="on top of each other"):
            list(compare(image, image))


def test_a_chunk_outside_of_its_blob(tmp_path: Path) -> None:
    built = build_image({b"x": some_bytes(5000, 1)})
    boot = bytearray(built.bootstrap)
    with Bootstrap(built.bootstrap) as bootstrap:
        inode = child_of_root(bootstrap, b"x")
        array = inode.offset + inode.inode_size + inode.xattr_size + 7 & -8
        boot[array + 4 : array + 8] = (1 << 20).to_bytes(4, "little")
    forged = BuiltImage(bytes(boot), built.blob_id, built.blob, built.meta, built.contents)
    for image in open_built(forged, tmp_path):
        with pytest.raises(FormatError, match="outside its blob"):
            image.open("x").read()
