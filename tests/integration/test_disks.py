"""An image as one disk: what fsck.erofs, Linux and qemu-img see is the image."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.block.base import READ_BYTES
from lamina.block.disk import DiskView
from lamina.build.convert import convert
from lamina.build.index import index_image
from lamina.build.options import ConvertOptions
from lamina.build.source_image import open_source_image
from lamina.cli.dispatch import run_command
from lamina.content.lazy_image import LazyImage
from lamina.erofs.flatten import Layout
from lamina.erofs.tree import Node
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.mount import attach_mount, create_mount, unmount
from lamina.oci.reference import parse_reference
from tests.integration.test_index import ordinary_image
from tests.support import tools
from tests.support.index_layers import gzip_members
from tests.support.native_images import BuiltImage, MemorySource, build_image, open_bootstrap
from tests.support.native_images import some_bytes as some
from tests.support.opening import open_image
from tests.support.sealed import Keys, SealedImage, make_source, seal

FILES = {
    b"empty": b"",
    b"one": b"1",
    b"page": some(4096, 1),
    b"large": some(300_001, 2),
    b"large-again": some(300_001, 2),
    **{b"many/%03d" % n: some(n * 211, n) for n in range(1, 150)},
}
NODES = {
    b"link": Node(stat.S_IFLNK | 0o777, target=b"many/007"),
    b"null": Node(stat.S_IFCHR | 0o666, rdev=1 << 8 | 3),
    b"d/xattr": Node(0o100600, xattrs={b"user.x": b"y"}, uid=70_000),
}


@pytest.fixture(scope="module")
def built() -> BuiltImage:
    return build_image(FILES, nodes=NODES, chunk_size=65536, pack_size=32768, blob_count=3)


@pytest.fixture
def image(built: BuiltImage, tmp_path: Path) -> Iterator[LazyImage]:
    path = tmp_path / "image.boot"
    path.write_bytes(built.bootstrap)
    with open_bootstrap(path, MemorySource(built), store=tmp_path / "store") as opened:
        yield opened


def write_disk(disk: DiskView, path: Path) -> Path:
    with path.open("wb") as file:
        for offset in range(0, disk.size_bytes, READ_BYTES):
            buffer = bytearray(min(READ_BYTES, disk.size_bytes - offset))
            assert disk.read_into(offset, buffer) == len(buffer)
            file.write(buffer)
    return path


@contextlib.contextmanager
def mounted(source: Path, folder: Path) -> Iterator[Path]:
    """The disk as Linux sees it through a loop device: what is mounted has one device."""
    tools.require_root()
    tools.require_erofs()
    tools.require_tool("losetup")
    folder.mkdir()
    done = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", source],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tools.missing(f"no loop devices: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        mount = create_mount("erofs", device, [("ro", None)])
        try:
            attach_mount(mount, str(folder))
        finally:
            os.close(mount)
        try:
            yield folder
        finally:
            unmount(str(folder))
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def check_disk(image: LazyImage, folder: Path, layout: Layout = Layout.PLAIN) -> None:
    disk = write_disk(DiskView(image, layout), folder / "disk")
    if layout is Layout.PLAIN:
        (fsck,) = tools.require_tool("fsck.erofs")
        done = subprocess.run([fsck, disk], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    with mounted(disk, folder / "mnt") as root:
        assert [str(each) for each in compare(image, FolderImage(root))] == []


@pytest.mark.kernel
@pytest.mark.tools
@pytest.mark.parametrize("layout", Layout)
def test_linux_mounts_a_native_image_as_one_disk(
    image: LazyImage, layout: Layout, tmp_path: Path
) -> None:
    check_disk(image, tmp_path, layout)


def test_any_range_is_the_same_bytes_as_the_whole_disk(image: LazyImage, tmp_path: Path) -> None:
    disk = DiskView(image)
    whole = write_disk(disk, tmp_path / "disk").read_bytes()
    assert len(whole) == disk.size_bytes and disk.size_bytes % 4096 == 0
    edges = sorted({s.offset for s in disk.segments(0, disk.size_bytes)})
    for offset in [*edges, 0, 1, disk.size_bytes - 3, disk.size_bytes, disk.size_bytes + 9]:
        for before, size in ((0, 1), (5, 4096), (4096, 70_001)):
            start = max(offset - before, 0)
            buffer = bytearray(size)
            count = disk.read_into(start, buffer)
            assert count == len(whole[start : start + size])
            assert buffer[:count] == whole[start : start + count]


def test_segments_are_the_whole_disk_and_holes_are_zeros(image: LazyImage, tmp_path: Path) -> None:
    disk = DiskView(image, Layout.NYDUS)
    whole = write_disk(disk, tmp_path / "disk").read_bytes()
    segments = list(disk.segments(0, disk.size_bytes))
    end = 0
    for segment in segments:
        assert segment.offset == end
        end += segment.size_bytes
        if segment.is_hole:
            assert not any(whole[segment.offset : end])
    assert end == disk.size_bytes
    assert [s.is_hole for s in segments[:4]] == [False, True, False, True]


def test_nothing_is_fetched_before_it_is_read(built: BuiltImage, tmp_path: Path) -> None:
    path = tmp_path / "image.boot"
    path.write_bytes(built.bootstrap)
    source = MemorySource(built)
    with open_bootstrap(path, source, store=tmp_path / "store") as image:
        disk = DiskView(image)
        disk.open_blobs()
        tables = len(source.requests)
        first = next(s for s in disk._extents)
        assert not disk.is_ready(first.offset, 4096)
        assert disk.is_ready(0, first.offset)
        disk.read_into(0, bytearray(first.offset))
        assert len(source.requests) == tables
        disk.read_into(first.offset, bytearray(4096))
        assert len(source.requests) > tables
        assert disk.is_ready(first.offset, 4096)


@pytest.mark.kernel
@pytest.mark.tools
@pytest.mark.parametrize("kind", ["index", "sealed"])
def test_linux_mounts_indexed_and_sealed_images_as_one_disk(kind: str, tmp_path: Path) -> None:
    if kind == "index":
        reference = ordinary_image(tmp_path / "layout", gzip_members)
        index_image(parse_reference(reference))
        opened = open_image(reference, store=tmp_path / "store")
    else:
        source, place = make_source(tmp_path / "source"), tmp_path / "sealed"
        seal(source, f"oci:{place}:sealed")
        opened = SealedImage(place, Keys.make(tmp_path)).open(tmp_path / "store")
    with opened as image:
        check_disk(image, tmp_path)


@pytest.mark.kernel
@pytest.mark.tools
def test_the_disk_of_debian_is_the_tree_of_its_layers(
    oci_image: Callable[[str], Path], tmp_path: Path
) -> None:
    (fsck,) = tools.require_tool("fsck.erofs")
    native, disk = f"oci:{tmp_path}/native:latest", tmp_path / "disk"
    source = parse_reference(f"oci:{oci_image('minbase')}:latest")
    convert(source, parse_reference(native), ConvertOptions())
    export = ["export", "--json", "--store", str(tmp_path / "store"), native, str(disk)]
    assert run_command(export) == 0
    # It reads what is in the files as well, and writes nothing.
    done = subprocess.run([fsck, "--extract", disk], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with open_source_image(source) as image, mounted(disk, tmp_path / "mnt") as root:
        assert [str(each) for each in compare(image, FolderImage(root))] == []
