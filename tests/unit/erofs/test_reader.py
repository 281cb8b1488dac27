"""The reader on images that the writer does not make: compact inodes, and damaged ones."""

from __future__ import annotations

import mmap
import random
import stat
import struct
from pathlib import Path

import pytest
from tests.support.rafs import Content, directory, make_image

from lamina.erofs.layout import INODE_COMPACT, Inode
from lamina.erofs.reader import Bootstrap
from lamina.erofs.tree import Node
from lamina.errors import FormatError

ENTRIES: dict[bytes, Content] = {
    b"file": b"f" * 10_000,
    b"link": Node(0o120777, target=b"file"),
    b"dir": directory(0o700, xattrs={b"user.a": b"1"}),
    b"null": Node(stat.S_IFCHR | 0o666, rdev=0x103),
}


@pytest.fixture(scope="module")
def image() -> bytes:
    return make_image(ENTRIES, chunk_size=4096).bootstrap


def inode_of(bootstrap: Bootstrap, name: bytes) -> Inode:
    nid = bootstrap.lookup(bootstrap.inode(bootstrap.root_nid), name)
    assert nid is not None
    return bootstrap.inode(nid)


def changed(image: bytes, offset: int, new: bytes) -> bytes:
    return image[:offset] + new + image[offset + len(new) :]


def test_compact_inodes(image: bytes) -> None:
    link = inode_of(Bootstrap(image), b"link")
    compact = INODE_COMPACT.pack(4, 0, 0o120777, 1, 4, 0, 9, 501, 502) + b"elif"
    data = changed(image, 1024 + 24, struct.pack("<Q", 1234))
    read = Bootstrap(changed(data, link.offset, compact)).inode(link.nid)
    assert (read.mode, read.nlink, read.size, read.ino) == (0o120777, 1, 4, 9)
    assert (read.uid, read.gid, read.mtime, read.mtime_ns) == (501, 502, 1234, 0)
    assert Bootstrap(changed(data, link.offset, compact)).readlink(read) == b"elif"


def test_build_times_are_signed(image: bytes) -> None:
    """As Linux reads them; 2^64 - 1 seconds could be given to no file."""
    link = inode_of(Bootstrap(image), b"link")
    compact = INODE_COMPACT.pack(4, 0, 0o120777, 1, 4, 0, 9, 501, 502) + b"elif"
    data = changed(image, 1024 + 24, b"\xff" * 8)
    assert Bootstrap(changed(data, link.offset, compact)).inode(link.nid).mtime == -1


def test_compact_file_has_its_indexes_after_32_bytes(image: bytes) -> None:
    file = inode_of(Bootstrap(image), b"file")
    indexes = bytes(Bootstrap(image).chunk_array(file))
    compact = INODE_COMPACT.pack(8, 0, 0o100644, 1, 10_000, file.raw, 9, 0, 0) + indexes
    bootstrap = Bootstrap(changed(image, file.offset, compact))
    assert bytes(bootstrap.chunk_array(bootstrap.inode(file.nid))) == indexes


def test_an_mmap_can_be_closed_after_the_bootstrap(image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.boot"
    path.write_bytes(image)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with Bootstrap(mapped) as bootstrap:
            digests = bootstrap.chunk_digests(0)
            assert digests.digest(0)
            assert list(bootstrap.readdir(bootstrap.inode(bootstrap.root_nid)))
        bootstrap.close()
        with pytest.raises(ValueError, match="released"):
            bootstrap.inode(128)


def test_a_refused_mmap_can_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "image.boot"
    path.write_bytes(bytes(8192))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        pytest.raises(FormatError, match="not an EROFS image"),
    ):
        Bootstrap(mapped)


@pytest.mark.parametrize(
    ("offset", "new", "message"),
    [
        (1024, b"\0", "magic"),
        (1028, b"\1", "checksum"),
        (1032, b"\0\0\0\0", "RAFS v6"),
        (1036, b"\x0a", "blkszbits"),
        (1036, b"\x09", "blkszbits"),
        (1037, b"\1", "extension_slots"),
        (1040, bytes(8), "inode count"),
        (1064, b"\xff\xff\xff\xff", "meta_blkaddr"),
        (1068, b"\1", "xattr_block"),
        (1104, b"\x0d", "feature_incompat"),
        (1108, b"\1", "u1"),
        (1110, b"\xff\xff", "extra_devices"),
        (1110, b"\2", "blob table"),
        (1110, b"\0", "blocks|blob table"),
        (1112, b"\0", "device_slot_offset"),
        (1114, b"\1", "directory_block_bits"),
        (1152, b"\0", "exactly one compression bit|exactly one digest bit"),
        (1152 + 5, b"\1", "only known bits"),
        (1152 + 8, b"\1", "blob_table_offset"),
        (1152 + 8, b"\xff" * 8, "blob_table_offset"),
        (1152 + 16, b"\1", "blob_table_size"),
        (1152 + 20, b"\0\0\0\0", "chunk_size"),
        (1152 + 20, b"\1", "chunk_size"),
        (1152 + 24, b"\1", "chunk_table_offset"),
        (1152 + 24, struct.pack("<Q", 4096), "blob table"),
        (1152 + 24, b"\xff" * 8, "chunk_table_size"),
        (1152 + 32, struct.pack("<Q", 1 << 60), "chunk_table_size"),
        (1152 + 40, struct.pack("<QI", 12, 8), "prefetch table"),
        (1152 + 40, struct.pack("<QI", 1 << 40, 8), "prefetch table"),
        (4096, b"\xff", "not UTF-8"),
        (4096, b"/", "blob id"),
        (4096, bytes(64), "blob id"),
        (4096 + 64, b"\1", "blob index"),
        (4096 + 68, b"\1", "chunk_size"),
        (4096 + 72, bytes(4), "chunk_count"),
        (4096 + 72, b"\xff" * 4, "chunk_count"),
        (4096 + 76, b"\4", "compressor"),
        (4096 + 80, b"\2", "digester"),
        (4096 + 84, b"\0", "ALIGNED"),
        (4096 + 87, b"\xf0", "unknown bit"),
        (4096 + 88, b"\xff" * 8, "compressed_size"),
        (4096 + 96, b"\1", "multiple of 4096"),
        (4096 + 96, b"\xff" * 8, "uncompressed_size"),
        (4096 + 108, b"\4", "ci_compressor"),
        (4096 + 112, b"\xff" * 8, "ci_offset"),
        (4096 + 112, bytes(8), "compressed data size"),
        (4096 + 120, b"\xff" * 8, "ci_compressed_size"),
        (4096 + 128, b"\xff" * 8, "ci_uncompressed_size"),
    ],
)
def test_damaged_fields_are_named(image: bytes, offset: int, new: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Bootstrap(changed(image, offset, new))


def test_two_blobs_of_one_name() -> None:
    from tests.support.rafs import blob_entry

    from lamina.erofs.writer import BootstrapOptions, write_bootstrap

    data = write_bootstrap(directory(), [blob_entry(), blob_entry()], b"", BootstrapOptions())
    with pytest.raises(FormatError, match="same blob id"):
        Bootstrap(data)


@pytest.mark.parametrize("size", [0, 100, 4095, 4097, 8192])
def test_short_images(image: bytes, size: int) -> None:
    with pytest.raises(FormatError, match=r"bootstrap: |not an EROFS"):
        Bootstrap(image[:size])


@pytest.mark.parametrize(
    ("name", "field", "new", "message"),
    [
        (b"file", 0, b"\x0b", "unknown format"),
        (b"file", 1, b"\1", "unknown format"),
        (b"file", 0, b"\x01", "layout"),
        (b"file", 2, b"\xff\xff", "extended attributes leave"),
        (b"file", 4, b"\0\0", "file type"),
        (b"file", 8, struct.pack("<Q", 1 << 63), "size"),
        (b"file", 8, struct.pack("<Q", 1 << 62), "chunk indexes lie outside"),
        (b"file", 16, b"\0", "chunk format"),
        (b"file", 18, b"\1", "chunk format"),
        (b"file", 66, b"\0", "device 0"),
        (b"file", 66, b"\2", "device 2"),
        (b"file", 40, b"\xff" * 4, "nanoseconds"),
        (b"link", 8, struct.pack("<Q", 0), "symbolic link"),
        (b"link", 8, struct.pack("<Q", 5000), "symbolic link"),
        (b"link", 8, struct.pack("<Q", 4090), "crosses a block|outside"),
        (b"link", 64, b"\0", "zero byte"),
        (b"dir", 8, struct.pack("<Q", 1 << 40), "larger than the image"),
        (b"dir", 8, struct.pack("<Q", 5), "cannot hold an entry"),
        (b"dir", 68, b"\1", "shared"),
    ],
)
def test_damaged_inodes_are_named(
    image: bytes, name: bytes, field: int, new: bytes, message: str
) -> None:
    nid = inode_of(Bootstrap(image), name).nid
    offset = inode_of(Bootstrap(image), name).offset
    bootstrap = Bootstrap(changed(image, offset + field, new))
    with pytest.raises(FormatError, match=rf"(inode|directory) {nid}\b.*{message}"):
        read_all(bootstrap, nid)


def read_all(bootstrap: Bootstrap, nid: int) -> None:
    inode = bootstrap.inode(nid)
    bootstrap.xattrs(inode)
    if stat.S_ISREG(inode.mode):
        list(bootstrap.chunks(inode))
    elif stat.S_ISLNK(inode.mode):
        bootstrap.readlink(inode)
    elif stat.S_ISDIR(inode.mode):
        list(bootstrap.readdir(inode))
        bootstrap.lookup(inode, b"x")


@pytest.mark.parametrize("nid", [-1, 1 << 40, 1 << 62])
def test_inodes_outside_of_the_image(image: bytes, nid: int) -> None:
    with pytest.raises(FormatError, match=f"inode {nid} lies outside"):
        Bootstrap(image).inode(nid)


def test_wrong_kinds_are_refused(image: bytes) -> None:
    bootstrap = Bootstrap(image)
    link, folder = inode_of(bootstrap, b"link"), inode_of(bootstrap, b"dir")
    with pytest.raises(FormatError, match="not a directory"):
        list(bootstrap.readdir(link))
    with pytest.raises(FormatError, match="not a symbolic link"):
        bootstrap.readlink(folder)
    with pytest.raises(FormatError, match="not a regular file"):
        list(bootstrap.chunks(folder))
    with pytest.raises(FormatError, match="no blob 1"):
        bootstrap.chunk_digests(1)


def test_chunks_from_the_middle(image: bytes) -> None:
    bootstrap = Bootstrap(image)
    file = inode_of(bootstrap, b"file")
    every = list(bootstrap.chunks(file))
    assert len(every) == bootstrap.chunk_count(file) == 3
    assert list(bootstrap.chunks(file, 1)) == every[1:]
    assert list(bootstrap.chunks(file, 1, 1)) == every[1:2]
    assert list(bootstrap.chunks(file, 0, 0)) == []


def test_no_flipped_byte_escapes_as_another_error(image: bytes) -> None:
    generator = random.Random(6)
    for _ in range(3000):
        data = bytearray(image)
        for _ in range(generator.randint(1, 3)):
            data[
                generator.choice([generator.randrange(len(data)), generator.randrange(1024, 5000)])
            ] = generator.randrange(256)
        try:
            bootstrap = Bootstrap(bytes(data))
            for nid in range(128, 170):
                try:
                    read_all(bootstrap, nid)
                except FormatError:
                    continue
        except FormatError:
            continue
