"""The mount table as text, and single mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import require_kernel, require_root

from lamina.linux import mount, mount_table
from lamina.linux.syscalls import SyscallError

LINE = rb"42 27 0:39 / %s ro,relatime shared:9 - erofs /a\040b ro,user_xattr"


def escaped(path: bytes) -> bytes:
    return b"".join(b"\\%03o" % c if bytes([c]) in b" \t\n\\" else bytes([c]) for c in path)


@given(st.binary(min_size=1, max_size=60).filter(lambda path: b"\0" not in path))
def test_paths_of_any_bytes(path: bytes) -> None:
    # The kernel escapes space, tab, newline and backslash; other separators are ordinary bytes.
    text = b"/" + path.replace(b"\r", b"")
    (entry,) = mount_table.parse_mount_table(LINE % escaped(text) + b"\n")
    assert os.fsencode(entry.mountpoint) == text


def test_fields() -> None:
    (entry,) = mount_table.parse_mount_table(LINE % b"/mnt")
    assert entry == (42, 27, "0:39", "/", "/mnt", "ro,relatime", "erofs", "/a b", "ro,user_xattr")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    for entry in mount_table.parse_mount_table(data):
        assert entry.mount_id >= 0


def test_own_table() -> None:
    table = mount_table.read_mount_table()
    assert any(entry.mountpoint == "/" for entry in table)
    assert mount_table.topmost_mount("/") is not None
    assert mount_table.topmost_mount("/no such mount") is None


def test_device_number_is_that_of_stat(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert mount_table.device_number(fd) == os.fstat(fd).st_dev
    finally:
        os.close(fd)


def test_a_mount_is_known_by_number_and_by_place(tmp_path: Path) -> None:
    require_root()
    require_kernel(6, 8, "statmount(2)")
    root = mount.create_mount("tmpfs", "lamina", [])
    try:
        number = mount_table.unique_mount_id(root)
        device = mount_table.device_number(root)
        place = f"{os.major(device)}:{os.minor(device)}"
        assert not mount_table.is_mounted(number)
        assert not mount_table.is_topmost(str(tmp_path), place)
        mount.attach_mount(root, str(tmp_path))
        assert mount_table.is_mounted(number)
        assert mount_table.is_topmost(str(tmp_path), place)
        (tmp_path / "below").mkdir()
        assert not mount_table.is_topmost(str(tmp_path / "below"), place)
        mount.unmount(str(tmp_path), mount.MNT_DETACH)
        # The descriptor keeps it, but it has no place any more.
        assert not mount_table.is_mounted(number)
    finally:
        os.close(root)


def test_a_path_that_is_not_there_has_no_mount(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match="statx"):
        mount_table.is_topmost(str(tmp_path / "absent"), "0:1")
