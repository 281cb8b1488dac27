"""How long a superblock is known to live."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.tools import require_erofs, require_kernel, require_root, require_tool

from lamina.errors import UnsupportedError
from lamina.linux import mount
from lamina.linux.superblock import SuperblockWatch, superblock_folder


def test_superblock_watch(tmp_path: Path) -> None:
    (tmp_path / "erofs-1").mkdir()
    (tmp_path / "fuse-2").mkdir()
    watch = SuperblockWatch("erofs", str(tmp_path))
    assert not watch.alive
    (tmp_path / "erofs-3").mkdir()
    (tmp_path / "nfs-4").mkdir()
    watch.mounted()
    assert watch.before == {str(tmp_path / "erofs-1")}
    assert watch.paths == (str(tmp_path / "erofs-3"),)
    assert watch.alive
    (tmp_path / "erofs-3").rmdir()
    assert not watch.alive


def test_superblock_watch_without_sysfs(tmp_path: Path) -> None:
    watch = SuperblockWatch("erofs", str(tmp_path / "absent"))
    watch.mounted()
    assert not watch.alive


def test_the_kernel_names_the_superblock_of_a_mount(tmp_path: Path) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "EROFS over files")
    require_tool("mkfs.erofs")
    (tmp_path / "tree").mkdir()
    subprocess.run(
        ("mkfs.erofs", tmp_path / "image", tmp_path / "tree"), check=True, stdout=subprocess.DEVNULL
    )
    watch = SuperblockWatch("erofs")
    root = mount.create_mount("erofs", str(tmp_path / "image"), [])
    try:
        watch.mounted()
        folder = superblock_folder(root)
        assert folder in watch.paths
        assert os.path.exists(folder)
    finally:
        os.close(root)
    assert not os.path.exists(folder)


def test_nothing_is_watched_without_sysfs(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="when a mount has ended"):
        SuperblockWatch("erofs", str(tmp_path / "absent")).require()
    SuperblockWatch("erofs", str(tmp_path)).require()
