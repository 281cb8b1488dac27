from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from lamina.errors import Error, NotFoundError
from lamina.image.errors import FileKindError
from lamina.image.folder import FolderImage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_bytes(b"0123456789")
    os.link(tmp_path / "dir" / "file", tmp_path / "same")
    (tmp_path / "link").symlink_to("/dir/file")
    (tmp_path / "up").symlink_to("../../../dir")
    os.utime(tmp_path / "same", ns=(0, 1_500_000_000_000_000_123))
    return tmp_path


def test_the_tree(folder: Path) -> None:
    with FolderImage(folder) as image:
        assert [path for path, _ in image.walk()] == [
            b"/",
            b"/dir",
            b"/dir/file",
            b"/link",
            b"/same",
            b"/up",
        ]
        found = image.stat("same")
        assert (found.mtime, found.mtime_ns) == (1_500_000_000, 123)
        assert found.nlink == 2
        assert found.ino == image.stat("dir/file").ino
        assert found.ino != image.root.ino
        assert image.readlink("link") == b"/dir/file"
        with pytest.raises(FileKindError):
            image.readlink("same")


def test_links_stay_in_the_folder(folder: Path) -> None:
    image = FolderImage(folder)
    assert image.stat("link").path == b"/dir/file"
    assert image.stat("up/file").path == b"/dir/file"
    assert image.stat("/../../dir").path == b"/dir"


def test_content(folder: Path) -> None:
    image = FolderImage(folder)
    with image.open("link") as file:
        assert file.read() == b"0123456789"
    assert image.pread(image.stat("same"), 3, 4) == b"3456"
    assert image.pread(image.stat("same"), 8, 4) == b"89"
    assert image.pread(image.stat("same"), 10, 4) == b""
    with pytest.raises(IsADirectoryError):
        image.open("dir")


def test_extended_attributes(folder: Path) -> None:
    try:
        os.setxattr(folder / "same", "user.a", b"value")
    except OSError as error:
        pytest.skip(f"no user attributes on this file system: {error}")
    image = FolderImage(folder)
    assert image.xattrs("same")[b"user.a"] == b"value"
    assert b"user.a" not in image.xattrs("dir")


def test_sockets_and_devices(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    os.mkfifo(folder / "fifo")
    image = FolderImage(folder)
    assert stat.S_ISSOCK(image.stat("socket").mode)
    assert stat.S_ISFIFO(image.stat("fifo").mode)
    device = FolderImage("/dev").stat("null")
    assert device.is_device
    assert device.device == (1, 3)


def test_what_is_not_there(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no directory"):
        FolderImage(folder / "absent")
    with pytest.raises(NotFoundError, match="no directory"):
        FolderImage(folder / "same")
    image = FolderImage(folder)
    with pytest.raises(FileNotFoundError):
        image.stat("absent")
    with pytest.raises(NotADirectoryError):
        list(image.scandir("same"))
    found = image.stat("same")
    (folder / "same").unlink()
    with pytest.raises(Error, match="cannot read"):
        image.pread(found, 0, 1)
