"""The two FUSE file systems, without a kernel."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.native_images import BuiltImage, build_image, image_files, open_bootstrap
from tests.support.serving import FolderSource, write_sample

from lamina.content.lazy_image import LazyImage
from lamina.content.read_log import ReadLog
from lamina.errors import Error, StoreError
from lamina.image.base import Stat
from lamina.opening.request import OpenRequest
from lamina.serve.device import read_exactly
from lamina.serve.devices.fuse_blob import BlobFilesystem, make_filesystem
from lamina.serve.fuse_server import MAX_READ_BYTES
from lamina.serve.fuse_tree import TreeFilesystem
from lamina.serve.service.spec import MountSpec
from lamina.wire import fuse

SCRATCH = memoryview(bytearray(MAX_READ_BYTES))


class Opened:
    def __init__(self, folder: Path) -> None:
        self.built: BuiltImage = write_sample(folder / "image")
        source = FolderSource(folder / "image")
        path = folder / "image" / "image.boot"
        self.image: LazyImage = open_bootstrap(path, source, store=folder / "store")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    with opened.image:
        yield opened


def ask(
    filesystem: BlobFilesystem | TreeFilesystem,
    opcode: fuse.Opcode,
    nodeid: int,
    body: bytes = b"",
) -> bytes:
    header = struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 7, nodeid, 0, 0, 1, 0, 0)
    return bytes(filesystem.handle(fuse.parse_request(header + body), SCRATCH))


def read_body(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def nodeid_of(entry: bytes) -> int:
    return int.from_bytes(entry[:8], "little")


def lookup(filesystem: TreeFilesystem, path: bytes) -> int:
    nodeid = fuse.ROOT_ID
    for name in path.split(b"/"):
        nodeid = nodeid_of(ask(filesystem, fuse.Opcode.LOOKUP, nodeid, name + b"\0"))
    return nodeid


def test_blobs_are_files(opened: Opened) -> None:
    blob = opened.image.blobs[0]
    filesystem = BlobFilesystem(opened.image.blobs)
    entry = ask(filesystem, fuse.Opcode.LOOKUP, fuse.ROOT_ID, b"0\0")
    assert nodeid_of(entry) == 2
    assert int.from_bytes(entry[48:56], "little") == blob.size_bytes
    data = ask(filesystem, fuse.Opcode.READ, 2, read_body(4096, 8192))
    expected = bytearray(8192)
    assert blob.read_into(4096, expected) == 8192
    assert data == expected
    beyond = ask(filesystem, fuse.Opcode.READ, 2, read_body(blob.size_bytes - 10, 4096))
    assert len(beyond) == 10
    assert ask(filesystem, fuse.Opcode.READ, 2, read_body(1 << 60, 4096)) == b""


@pytest.mark.parametrize(
    ("is_cached", "flag"), [(True, fuse.OpenFlag.KEEP_CACHE), (False, fuse.OpenFlag.DIRECT_IO)]
)
def test_how_the_kernel_keeps_blobs(opened: Opened, is_cached: bool, flag: fuse.OpenFlag) -> None:
    filesystem = BlobFilesystem(opened.image.blobs, {0} if is_cached else ())
    said = ask(filesystem, fuse.Opcode.OPEN, 2, b"")
    assert int.from_bytes(said[8:12], "little") == flag | fuse.OpenFlag.NOFLUSH


@pytest.mark.parametrize(
    ("size", "readahead_kib", "flag"),
    [
        (5000, 64, fuse.OpenFlag.KEEP_CACHE),
        (5000, 0, fuse.OpenFlag.DIRECT_IO),
        (9000, 64, fuse.OpenFlag.DIRECT_IO),
    ],
    ids=["tiny", "recorded", "ordinary"],
)
def test_blobs_of_tiny_files_are_kept(
    tmp_path: Path, size: int, readahead_kib: int, flag: fuse.OpenFlag
) -> None:
    files = {b"%02d" % n: random.Random(n).randbytes(size) for n in range(20)}
    image_files(tmp_path / "image", build_image(files, chunk_size=64 << 10))
    spec = MountSpec(
        image=OpenRequest(reference="x"),
        mountpoint="/mnt",
        device="fuse-blob",
        readahead_kib=readahead_kib,
    )
    source = FolderSource(tmp_path / "image")
    with open_bootstrap(tmp_path / "image/image.boot", source, store=tmp_path / "store") as image:
        said = ask(make_filesystem(spec, image), fuse.Opcode.OPEN, 2, b"")
    assert int.from_bytes(said[8:12], "little") == flag | fuse.OpenFlag.NOFLUSH


def test_what_is_ready_is_answered_at_once(opened: Opened, tmp_path: Path) -> None:
    """Nothing else is: what is missing, is no whole read, or is recorded."""
    blob = opened.image.blobs[0]
    filesystem = BlobFilesystem(opened.image.blobs)

    def at_once(offset: int, size: int, nodeid: int = 2) -> bytes | None:
        body = memoryview(read_body(offset, size))
        asked = fuse.Request(fuse.Opcode.READ, 7, nodeid, 0, 0, 1, body)
        found = filesystem.quick(asked, SCRATCH)
        return None if found is None else bytes(found)

    assert at_once(0, 4096) is None, "it is not here yet"
    expected = bytearray(8192)
    blob.read_into(0, expected)
    assert at_once(0, 8192) == expected
    assert at_once(blob.size_bytes - 10, 4096) is None
    assert at_once(0, 4096, nodeid=9) is None
    assert at_once(0, 4096, nodeid=1) is None
    assert at_once(0, MAX_READ_BYTES + 1) is None
    opened_at = fuse.Request(fuse.Opcode.OPEN, 7, 2, 0, 0, 1, memoryview(b""))
    assert filesystem.quick(opened_at, SCRATCH) is None
    blob.record(ReadLog())
    assert at_once(0, 4096) is None


@pytest.mark.parametrize(
    ("opcode", "nodeid", "body", "code"),
    [
        (fuse.Opcode.LOOKUP, 1, b"1\0", errno.ENOENT),
        (fuse.Opcode.LOOKUP, 1, b"-1\0", errno.ENOENT),
        (fuse.Opcode.LOOKUP, 1, "²".encode() + b"\0", errno.ENOENT),
        (fuse.Opcode.GETATTR, 3, b"", errno.ESTALE),
        (fuse.Opcode.READ, 1, read_body(0, 1), errno.ESTALE),
        (fuse.Opcode.READ, 2, read_body(0, MAX_READ_BYTES + 1), errno.EINVAL),
        (fuse.Opcode.WRITE, 2, b"", errno.EROFS),
        (fuse.Opcode.FSYNC, 2, b"", errno.ENOSYS),
    ],
)
def test_what_blobs_refuse(
    opened: Opened, opcode: fuse.Opcode, nodeid: int, body: bytes, code: int
) -> None:
    with pytest.raises(OSError) as caught:
        ask(BlobFilesystem(opened.image.blobs), opcode, nodeid, body)
    assert caught.value.errno == code


def test_cut_off_cache_file_is_an_error(opened: Opened) -> None:
    blob = opened.image.blobs[0]
    blob.ensure(0, blob.size_bytes)
    os.truncate(blob.path, 5000)
    assert len(read_exactly(blob, 0, SCRATCH, 5000)) == 5000
    with pytest.raises(StoreError, match="shorter"):
        read_exactly(blob, 0, SCRATCH, 8192)


def test_tree_lookup_attributes_and_data(opened: Opened) -> None:
    filesystem = TreeFilesystem(opened.image)
    for path in (b"sizes/700000", b"deep/er/and/deeper/name with space \xff", b"many/file-007"):
        nodeid = lookup(filesystem, path)
        stat = opened.image.stat(path)
        attributes = ask(filesystem, fuse.Opcode.GETATTR, nodeid)[16:]
        assert int.from_bytes(attributes[8:16], "little") == stat.size
        assert int.from_bytes(attributes[60:64], "little") == stat.mode
        content = opened.built.contents[path]
        assert ask(filesystem, fuse.Opcode.READ, nodeid, read_body(3, 1000)) == content[3:1003]
        assert ask(filesystem, fuse.Opcode.READ, nodeid, read_body(stat.size, 10)) == b""


def test_tree_missing_name_is_remembered(opened: Opened) -> None:
    entry = ask(TreeFilesystem(opened.image), fuse.Opcode.LOOKUP, fuse.ROOT_ID, b"absent\0")
    assert nodeid_of(entry) == 0


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [300, 4096, 131072])
def test_tree_folders_in_parts(opened: Opened, plus: bool, size: int) -> None:
    filesystem = TreeFilesystem(opened.image)
    opcode = fuse.Opcode.READDIRPLUS if plus else fuse.Opcode.READDIR
    folder = lookup(filesystem, b"many")
    names: list[bytes] = []
    cookie = 0
    while part := ask(filesystem, opcode, folder, read_body(cookie, size)):
        assert len(part) <= size
        position = 0
        while position < len(part):
            position += 128 if plus else 0
            ino, cookie, length, kind = struct.unpack_from("=QQII", part, position)
            assert ino and kind
            names.append(part[position + 24 : position + 24 + length])
            position += 24 + length + -(24 + length) % 8
    assert names == [b".", b"..", *(b"file-%03d" % number for number in range(300))]


def test_tree_links_and_xattrs(opened: Opened) -> None:
    filesystem = TreeFilesystem(opened.image)
    link = lookup(filesystem, b"link")
    assert ask(filesystem, fuse.Opcode.READLINK, link) == b"sizes/1/x"
    marked = lookup(filesystem, b"marked")

    def xattr(name: bytes, size: int) -> bytes:
        body = struct.pack("=II", size, 0) + name + b"\0"
        return ask(filesystem, fuse.Opcode.GETXATTR, marked, body)

    assert xattr(b"user.note", 100) == b"v\0v"
    assert xattr(b"user.note", 0) == struct.pack("=II", 3, 0)
    listed = ask(filesystem, fuse.Opcode.LISTXATTR, marked, struct.pack("=II", 100, 0))
    assert listed == b"trusted.t\0user.note\0"
    for name, size, code in ((b"user.no", 9, errno.ENODATA), (b"user.note", 2, errno.ERANGE)):
        with pytest.raises(OSError) as caught:
            xattr(name, size)
        assert caught.value.errno == code


def test_tree_refusals(opened: Opened) -> None:
    filesystem = TreeFilesystem(opened.image)
    with pytest.raises(OSError) as caught:
        ask(filesystem, fuse.Opcode.READ, fuse.ROOT_ID, read_body(0, 10))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError) as caught:
        ask(filesystem, fuse.Opcode.GETATTR, 999_999)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(Error):
        ask(filesystem, fuse.Opcode.READLINK, fuse.ROOT_ID)


def test_nodes_are_known_to_whoever_has_the_image(opened: Opened) -> None:
    """Another process answers for a node that this one has given out, or has been told to
    forget.
    """
    nodeid = lookup(TreeFilesystem(opened.image), b"sizes/1")
    other = TreeFilesystem(opened.image)
    before = ask(other, fuse.Opcode.GETATTR, nodeid)
    assert (
        ask(other, fuse.Opcode.READ, nodeid, read_body(0, 10)) == opened.built.contents[b"sizes/1"]
    )
    other.forget(nodeid, 1)
    assert ask(other, fuse.Opcode.GETATTR, nodeid) == before


def test_attributes_that_are_hidden(opened: Opened) -> None:
    """The sample has ``user.note`` and ``trusted.t`` on one of its files."""
    name = next(
        path for path, stat in walk(opened.image) if b"user.note" in opened.image.xattrs(stat)
    )
    for prefix, shown in ((None, b"trusted.t\0user.note\0"), (b"trusted.", b"user.note\0")):
        filesystem = TreeFilesystem(opened.image, hidden=prefix)
        node = lookup(filesystem, name)
        assert ask(filesystem, fuse.Opcode.LISTXATTR, node, struct.pack("=II", 100, 0)) == shown
        wanted = struct.pack("=II", 100, 0) + b"trusted.t\0"
        if prefix is None:
            assert ask(filesystem, fuse.Opcode.GETXATTR, node, wanted) == b"1"
        else:
            with pytest.raises(OSError) as caught:
                ask(filesystem, fuse.Opcode.GETXATTR, node, wanted)
            assert caught.value.errno == errno.ENODATA


def walk(image: LazyImage, folder: bytes = b"") -> Iterator[tuple[bytes, Stat]]:
    for name, stat in image.scandir(folder or b"/"):
        path = folder + b"/" + name if folder else name
        yield path, stat
        if stat.is_dir:
            yield from walk(image, path)
