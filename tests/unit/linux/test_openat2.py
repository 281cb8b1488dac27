"""Opening below a folder without leaving it, against this kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import FormatError
from lamina.linux.openat2 import open_below, open_file_below
from lamina.linux.syscalls import SyscallError


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "root/a/file").write_text("x")
    (tmp_path / "root/link").symlink_to("a")
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def inode(fd: int) -> int:
    try:
        assert not os.get_inheritable(fd)
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["a/b", "/a/b", "../../a/b", "a/../a/./b", "//a//b"])
def test_the_folder_is_the_root(root: int, path: str, tmp_path: Path) -> None:
    assert inode(open_below(root, path, os.O_PATH)) == (tmp_path / "root/a/b").stat().st_ino


@pytest.mark.parametrize("path", ["", ".", "..", "/", "../../.."])
def test_there_is_nothing_above(root: int, path: str, tmp_path: Path) -> None:
    assert inode(open_below(root, path, os.O_PATH)) == (tmp_path / "root").stat().st_ino


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("link", errno.ELOOP),
        ("link/b", errno.ELOOP),
        ("../outside", errno.ENOENT),
        ("a/file/x", errno.ENOTDIR),
        ("a/" * 2100, errno.ENAMETOOLONG),
    ],
)
def test_refusals(root: int, path: str, code: int) -> None:
    with pytest.raises(SyscallError) as caught:
        open_below(root, path, os.O_PATH)
    assert caught.value.code == code


def test_a_link_at_the_end_is_opened_itself(root: int) -> None:
    fd = open_below(root, "link", os.O_PATH | os.O_NOFOLLOW)
    try:
        assert os.readlink("", dir_fd=fd) == "a"
    finally:
        os.close(fd)


def test_no_magic_link_is_followed(root: int) -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        for path in ("self/root", "thread-self/fd/0", f"{os.getpid()}/cwd"):
            with pytest.raises(SyscallError) as caught:
                open_below(proc, path, os.O_PATH)
            assert caught.value.code == errno.ELOOP
    finally:
        os.close(proc)


def test_a_nul_byte(root: int) -> None:
    with pytest.raises(FormatError, match="NUL"):
        open_below(root, "a\0/x", os.O_PATH)


def test_nothing_but_a_file_is_opened_for_reading(tmp_path: Path, root: int) -> None:
    os.mkfifo(tmp_path / "root/pipe")
    (tmp_path / "root/leads").symlink_to("a/file")
    with open(open_file_below(root, "a/file")) as file:
        assert file.read() == "x"
    for path in ("pipe", "a", "leads", "link/file", "absent", "a/file/more"):
        assert open_file_below(root, path) == -1
