"""Unpacking against hostile folders and as a user without privileges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support import layers
from tests.support.layers import Item, folder, oci_layout, symlink

from lamina.build.source_image import open_source_image
from lamina.build.unpack import unpack_to_folder
from lamina.errors import StoreError, UsageError
from lamina.image.errors import FileKindError, NotDirectoryError, PathNotFoundError


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    with open_source_image(oci_layout(tmp_path / "oci", [[Item("a")]])) as image:
        with pytest.raises(UsageError, match="not empty"):
            unpack_to_folder(image, tmp_path / "tree")
        with pytest.raises(StoreError, match="cannot be made"):
            unpack_to_folder(image, tmp_path / "tree" / "file")


def test_a_link_swapped_in_is_not_followed(tmp_path: Path) -> None:
    items = [folder("d"), *(Item(f"d/{i}", b"x") for i in range(3))]
    outside = tmp_path / "outside"
    outside.mkdir()
    with open_source_image(oci_layout(tmp_path / "oci", [items])) as image:
        tree = tmp_path / "tree"
        scandir = image.scandir

        def swap(where: object) -> object:
            found = list(scandir(where))  # type: ignore[arg-type]
            if getattr(where, "path", b"") == b"/d":
                (tree / "d").rename(tree / "moved")
                (tree / "d").symlink_to(outside)
            return iter(found)

        image.scandir = swap  # type: ignore[method-assign, assignment]
        with pytest.raises(StoreError, match="/d cannot be written"):
            unpack_to_folder(image, tree)
    assert list(outside.iterdir()) == []


def test_as_another_user_what_is_allowed_is_kept(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("not root: cannot become another user")
    items = [
        folder("d", 0o500),
        Item("d/file", b"content", mode=0o400, uid=5, mtime=1_000_000),
        Item("null", kind=layers.CHARACTER, device=(1, 3)),
        Item("caps", xattrs={"security.capability": "\1\0\0\2\0\x20" + "\0" * 14}),
        symlink("l", "d"),
    ]
    tree = tmp_path / "tree"
    tree.mkdir()
    os.chown(tree, 12345, 12345)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    with open_source_image(oci_layout(tmp_path / "oci", [items])) as image:
        pid = os.fork()
        if not pid:
            try:
                os.setgroups([])
                os.setresgid(12345, 12345, 12345)
                os.setresuid(12345, 12345, 12345)
                report = unpack_to_folder(image, tree)
                # Owners, devices, and (as the kernel decides) capabilities.
                os._exit(0 if len(report.notes) >= 2 and report.entries == 5 else 3)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tree / "d" / "file").read_bytes() == b"content"
    assert (tree / "d" / "file").stat().st_mode & 0o777 == 0o400
    assert (tree / "d" / "file").stat().st_mtime == 1_000_000
    assert (tree / "d").stat().st_mode & 0o777 == 0o500
    assert not (tree / "null").exists()


def test_source_image_lookups(tmp_path: Path) -> None:
    items = [folder("d"), Item("d/f", b"0123456789"), symlink("l", "d/f")]
    with open_source_image(oci_layout(tmp_path / "oci", [items])) as image:
        assert image.open("/l").read() == b"0123456789"
        status = image.stat("/d/f")
        assert image.pread(status, 3, 4) == b"3456"
        assert image.pread(status, 8, 100) == b"89"
        assert image.pread(status, 10, 1) == image.pread(status, -1, 1) == b""
        assert image.readlink("/l") == b"d/f"
        assert image.stat("/d").nlink == 2
        assert image.root.nlink == 3
        with pytest.raises(PathNotFoundError):
            image.stat("/d/none")
        with pytest.raises(NotDirectoryError):
            list(image.scandir("/d/f"))
        with pytest.raises(FileKindError):
            image.readlink("/d/f")
    image.close()
