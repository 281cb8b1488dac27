"""The mount table as text, and system calls that fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.linux import mount, process
from lamina.linux.syscalls import SyscallError

LINE = rb"42 27 0:39 / %s ro,relatime shared:9 - erofs /a\040b ro,user_xattr"


def escaped(path: bytes) -> bytes:
    return b"".join(b"\\%03o" % c if bytes([c]) in b" \t\n\\" else bytes([c]) for c in path)


@given(st.binary(min_size=1, max_size=60).filter(lambda path: b"\0" not in path))
def test_paths_of_any_bytes(path: bytes) -> None:
    # The kernel escapes space, tab, newline and backslash; other separators are ordinary bytes.
    text = b"/" + path.replace(b"\r", b"")
    (entry,) = mount.parse_mount_table(LINE % escaped(text) + b"\n")
    assert os.fsencode(entry.mountpoint) == text


def test_fields() -> None:
    (entry,) = mount.parse_mount_table(LINE % b"/mnt")
    assert entry == (42, 27, "0:39", "/", "/mnt", "ro,relatime", "erofs", "/a b", "ro,user_xattr")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for entry in mount.parse_mount_table(data):
        assert entry.mount_id >= 0


def test_own_table() -> None:
    table = mount.read_mount_table()
    assert any(entry.mountpoint == "/" for entry in table)
    assert mount.topmost_mount("/") is not None
    assert mount.topmost_mount("/no such mount") is None


def test_device_number_is_that_of_stat(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert mount.device_number(fd) == os.fstat(fd).st_dev
    finally:
        os.close(fd)


def test_superblock_watch(tmp_path: Path) -> None:
    (tmp_path / "erofs-1").mkdir()
    (tmp_path / "fuse-2").mkdir()
    watch = mount.SuperblockWatch("erofs", str(tmp_path))
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
    watch = mount.SuperblockWatch("erofs", str(tmp_path / "absent"))
    watch.mounted()
    assert not watch.alive


def test_failures_name_the_call_and_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        mount.unmount(str(tmp_path / "absent"))
    assert caught.value.syscall == "umount2"
    assert caught.value.code in (errno.ENOENT, errno.EPERM)
    assert str(tmp_path) in str(caught.value)


def test_start_time_names_a_process() -> None:
    mine = process.start_time_ticks(os.getpid())
    assert mine is not None and mine == process.start_time_ticks(os.getpid())
    assert process.start_time_ticks(2**22 + 1) is None


def test_a_process_that_has_ended_has_no_start() -> None:
    import select

    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], 10)[0]
        assert process.start_time_ticks(pid) is None, "a zombie serves nobody"
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
