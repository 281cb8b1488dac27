"""One device of a bootstrap and its blobs: addresses, holes, and what is refused."""

from __future__ import annotations

import struct

import pytest
from tests.support.native_images import build_image, some_bytes

from lamina.codec.crc32c import crc32c
from lamina.erofs.flatten import Layout, flatten
from lamina.erofs.layout import BLOCK_SIZE, SUPERBLOCK, Superblock
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, UnsupportedError

FILES = {b"a": some_bytes(10_000, 1), b"b": some_bytes(4096, 2), b"empty": b"", b"d/c": b"x"}


@pytest.fixture(scope="module")
def bootstrap() -> bytes:
    return build_image(FILES, chunk_size=4096, blob_count=2).bootstrap


def test_the_superblock_has_no_devices_and_a_right_checksum(bootstrap: bytes) -> None:
    flat = flatten(Bootstrap(bootstrap))
    superblock = Superblock._make(SUPERBLOCK.unpack_from(flat.metadata, 1024))
    assert (superblock.extra_devices, superblock.feature_incompat) == (0, 4)
    assert superblock.blocks * BLOCK_SIZE == flat.size_bytes
    assert superblock.uuid == flat.uuid and flat.uuid[6] >> 4 == 8
    head = bytearray(flat.metadata[1024:4096])
    head[4:8] = bytes(4)
    assert superblock.checksum == crc32c(head) ^ 0xFFFFFFFF


def test_every_chunk_is_inside_of_the_extents(bootstrap: bytes) -> None:
    opened = Bootstrap(bootstrap)
    flat = flatten(opened)
    root = opened.inode(opened.root_nid)
    nid = opened.lookup(root, b"a")
    assert nid is not None
    start = opened.inode(nid).offset + 64
    indexes = struct.unpack_from("<HBBIHBBIHBBI", flat.metadata, start)
    for low, device, high, address in zip(*[iter(indexes)] * 4, strict=True):
        assert (low, device, high) == (0, 0, 0)
        offset = address * BLOCK_SIZE
        assert any(e.offset <= offset < e.offset + e.size_bytes for e in flat.extents)
    assert flat.extents[0].offset >= len(flat.metadata)
    ends = [e.offset + e.size_bytes for e in flat.extents]
    assert all(a <= e.offset for a, e in zip(ends, flat.extents[1:], strict=False))
    assert ends[-1] <= flat.size_bytes


def test_metadata_for_nydus_are_as_they_were(bootstrap: bytes) -> None:
    opened = Bootstrap(bootstrap)
    flat = flatten(opened, Layout.NYDUS)
    assert flat.metadata == bootstrap
    assert [e.offset % 0x80000 for e in flat.extents][:1] == [0]


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("address", [1 << 20, 0xFFFFFFFF, 3])
def test_chunks_outside_of_their_blob_are_refused(
    bootstrap: bytes, layout: Layout, address: int
) -> None:
    damaged = bytearray(bootstrap)
    opened = Bootstrap(bootstrap)
    nid = opened.lookup(opened.inode(opened.root_nid), b"a")
    assert nid is not None
    struct.pack_into("<I", damaged, opened.inode(nid).offset + 64 + 4, address)
    with pytest.raises(FormatError):
        flatten(Bootstrap(bytes(damaged)), layout)


def test_images_without_places_on_one_disk_are_refused(bootstrap: bytes) -> None:
    damaged = bytearray(bootstrap)
    struct.pack_into("<I", damaged, 1408 + 68, 0)
    with pytest.raises(UnsupportedError, match="places"):
        flatten(Bootstrap(bytes(damaged)), Layout.NYDUS)
    assert flatten(Bootstrap(bytes(damaged))).size_bytes > 0
