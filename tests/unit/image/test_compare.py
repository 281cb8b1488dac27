from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.native_images import (
    MemorySource,
    build_image,
    image_files,
    open_bootstrap,
    some_bytes,
)

from lamina.erofs.tree import Node
from lamina.errors import Error
from lamina.image import compare as compare_module
from lamina.image.compare import Difference, compare
from lamina.image.folder import FolderImage


def make(base: Path) -> Path:
    (base / "dir" / "sub").mkdir(parents=True)
    (base / "dir" / "file").write_bytes(b"content")
    (base / "big").write_bytes(some_bytes(3 << 20, 1))
    os.link(base / "dir" / "file", base / "hard")
    (base / "alone").write_bytes(b"content")
    (base / "link").symlink_to("dir/file")
    os.mkfifo(base / "fifo")
    for folder, folders, files in os.walk(base, topdown=False):
        for name in (*folders, *files, "."):
            os.utime(os.path.join(folder, name), (0, 1_600_000_000), follow_symlinks=False)
    return base


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path / "left"), make(tmp_path / "right")


def differences(trees: tuple[Path, Path]) -> list[Difference]:
    return list(compare(FolderImage(trees[0]), FolderImage(trees[1])))


def test_equal_trees(trees: tuple[Path, Path]) -> None:
    assert differences(trees) == []


def keep_times(path: Path, change: Callable[[], object]) -> None:
    """Change something below *path* without changing the time of *path*."""
    before = os.stat(path)
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite(path: Path, data: bytes) -> None:
    keep_times(path, lambda: path.write_bytes(data))


def test_contents(trees: tuple[Path, Path]) -> None:
    damaged = bytearray((trees[1] / "big").read_bytes())
    damaged[(2 << 20) + 17] ^= 1
    rewrite(trees[1] / "big", bytes(damaged))
    (found,) = differences(trees)
    assert found.path == b"/big"
    assert found.what == f"content at byte {(2 << 20) + 17}"
    assert str(found).startswith("/big: content at byte")
    assert list(compare(FolderImage(trees[0]), FolderImage(trees[1]), contents=False)) == []


def test_size(trees: tuple[Path, Path]) -> None:
    rewrite(trees[1] / "alone", b"content!")
    assert differences(trees) == [Difference(b"/alone", "size", "7", "8")]


def test_mode(trees: tuple[Path, Path]) -> None:
    (trees[1] / "alone").chmod(0o4711)
    assert differences(trees) == [Difference(b"/alone", "mode", "0644", "4711")]


def test_times(trees: tuple[Path, Path]) -> None:
    os.utime(trees[1] / "alone", (0, 1_600_000_001))
    assert differences(trees) == [Difference(b"/alone", "mtime", "1600000000", "1600000001")]


def test_nanoseconds_count_only_where_both_have_some(trees: tuple[Path, Path]) -> None:
    os.utime(trees[1] / "alone", ns=(0, 1_600_000_000_000_000_005))
    assert differences(trees) == []
    os.utime(trees[0] / "alone", ns=(0, 1_600_000_000_000_000_006))
    (found,) = differences(trees)
    assert (found.left, found.right) == ("1600000000.000000006", "1600000000.000000005")


def test_names(trees: tuple[Path, Path]) -> None:
    def move() -> None:
        (trees[1] / "alone").rename(trees[1] / "renamed")
        (trees[1] / "dir" / "sub").rename(trees[1] / "sub")

    keep_times(trees[1], lambda: keep_times(trees[1] / "dir", move))
    assert set(differences(trees)) == {
        Difference(b"/alone", "exists", "file", "absent"),
        Difference(b"/renamed", "exists", "absent", "file"),
        Difference(b"/sub", "exists", "absent", "directory"),
        Difference(b"/dir/sub", "exists", "directory", "absent"),
    }


def test_type(trees: tuple[Path, Path]) -> None:
    def replace() -> None:
        (trees[1] / "alone").unlink()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(trees[1] / "alone"))

    keep_times(trees[1], replace)
    assert differences(trees) == [Difference(b"/alone", "type", "file", "socket")]


def test_link_targets(trees: tuple[Path, Path]) -> None:
    def replace() -> None:
        (trees[1] / "link").unlink()
        (trees[1] / "link").symlink_to("dir/elif")
        os.utime(trees[1] / "link", (0, 1_600_000_000), follow_symlinks=False)

    keep_times(trees[1], replace)
    assert differences(trees) == [Difference(b"/link", "target", "dir/file", "dir/elif")]


def test_hard_links(trees: tuple[Path, Path]) -> None:
    def relink() -> None:
        (trees[1] / "hard").unlink()
        os.link(trees[1] / "alone", trees[1] / "hard")

    keep_times(trees[1], relink)
    found = differences(trees)
    assert Difference(b"/hard", "hard link", "same as /dir/file", "same as /alone") in found


def test_a_hard_link_that_became_a_copy(trees: tuple[Path, Path]) -> None:
    def copy() -> None:
        (trees[1] / "hard").unlink()
        (trees[1] / "hard").write_bytes(b"content")
        os.utime(trees[1] / "hard", (0, 1_600_000_000))

    keep_times(trees[1], copy)
    assert differences(trees) == [
        Difference(b"/hard", "hard link", "same as /dir/file", "first name")
    ]


def test_attributes(trees: tuple[Path, Path]) -> None:
    try:
        os.setxattr(trees[0] / "alone", "user.a", b"\1")
        os.setxattr(trees[0] / "dir", "user.b", b"")
        os.setxattr(trees[1] / "dir", "user.b", b"\2")
    except OSError as error:
        pytest.skip(f"no user attributes on this file system: {error}")
    assert differences(trees) == [
        Difference(b"/alone", "attribute user.a", "01", "absent"),
        Difference(b"/dir", "attribute user.b", "empty", "02"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owners_and_devices(trees: tuple[Path, Path]) -> None:
    os.chown(trees[1] / "alone", 12, 34)
    for tree, minor in zip(trees, (3, 5), strict=True):
        try:
            keep_times(
                tree,
                lambda: os.mknod(tree / "null", stat.S_IFCHR | 0o600, os.makedev(1, minor)),  # noqa: B023
            )
        except PermissionError as error:
            pytest.skip(f"no device nodes here: {error}")
        os.utime(tree / "null", (0, 1))
    assert set(differences(trees)) == {
        Difference(b"/alone", "owner", "0:0", "12:34"),
        Difference(b"/null", "device", "1:3", "1:5"),
    }


def test_a_native_image_with_what_it_was_made_of(tmp_path: Path) -> None:
    files = {b"a": some_bytes(9000, 1), b"dir/b": b"short", b"dir/c": b""}
    link = Node(stat.S_IFLNK | 0o777, size=5, target=b"dir/b", mtime=1_700_000_000)
    built = build_image(files, nodes={b"link": link}, pack_size=4096)
    folder = tmp_path / "folder"
    for path, content in files.items():
        where = folder / os.fsdecode(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(content)
        os.chown(where, 0, 0) if os.geteuid() == 0 else None
        where.chmod(0o644)
        os.utime(where, (0, 1_700_000_000))
    (folder / "link").symlink_to("dir/b")
    os.utime(folder / "link", (0, 1_700_000_000), follow_symlinks=False)
    for directory in (folder / "dir", folder):
        directory.chmod(0o755)
        os.utime(directory, (0, 0))
    source = MemorySource(built)
    path = image_files(tmp_path / "image", built)
    with open_bootstrap(path, source, store=tmp_path / "store") as image:
        found = list(compare(image, FolderImage(folder)))
        assert [one for one in found if one.what != "owner"] == []
        assert not found or os.geteuid() != 0


def test_a_folder_cannot_have_the_mode_of_a_link(tmp_path: Path) -> None:
    images = []
    for name, mode in (("a", 0o644), ("b", 0o777)):
        link = Node(stat.S_IFLNK | mode, size=1, target=b"x", mtime=1_700_000_000)
        built = build_image({}, nodes={b"link": link}, pack_size=4096)
        path = image_files(tmp_path / name, built)
        images.append(open_bootstrap(path, MemorySource(built), store=tmp_path / "store"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("x")
    os.utime(folder / "link", (0, 1_700_000_000), follow_symlinks=False)
    os.utime(folder, (0, 0))
    for image in images:
        for found in (compare(image, FolderImage(folder)), compare(FolderImage(folder), image)):
            assert [one for one in found if one.what != "owner"] == []
    assert [one.what for one in compare(*images)] == ["mode"]
    for image in images:
        image.close()


class Failing(FolderImage):
    def pread(self, stat: object, offset: int, size: int) -> bytes:
        raise Error("the disk is on fire")


def test_an_error_while_reading_ends_the_comparison(trees: tuple[Path, Path]) -> None:
    with pytest.raises(Error, match="on fire"):
        list(compare(FolderImage(trees[0]), Failing(trees[1])))


def test_stopping_early_leaves_no_thread_behind(
    trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "LOOKAHEAD", 1)
    (trees[1] / "alone").chmod(0o600)
    found: Iterator[Difference] = compare(FolderImage(trees[0]), FolderImage(trees[1]))
    assert next(found).path == b"/alone"
    found.close()  # type: ignore[attr-defined]
