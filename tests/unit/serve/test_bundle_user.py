"""Who a container runs as: docker's rules, from the image's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError, NotFoundError, UsageError
from lamina.image.folder import FolderImage
from lamina.serve import container_user
from lamina.serve.container_user import (
    ContainerUser,
    parse_group,
    parse_passwd,
    resolve_user,
)

PASSWD = """\
# a comment
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1::/usr/sbin:/bin/sh
nohome:x:5:50
broken
broken:x:many:0::/:
1000:x:77:78:a name of digits:/digits:/bin/sh
app:x:1000:1001:App:/srv/app:/bin/sh
twin:x:1000:2000::/twin:/bin/sh
"""
GROUP = """\
root:x:0:
adm:x:4:app,daemon
disk:x:6:root,app
broken
video:x:44:app
app:x:1001:
"""


@pytest.fixture
def image(tmp_path: Path) -> FolderImage:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return FolderImage(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", ContainerUser(0, 0, (6,), "/root")),
        ("root", ContainerUser(0, 0, (6,), "/root")),
        ("0", ContainerUser(0, 0, (6,), "/root")),
        ("app", ContainerUser(1000, 1001, (4, 6, 44), "/srv/app")),
        # A number is always an id; the first entry of that id counts.
        ("1000", ContainerUser(1000, 1001, (4, 6, 44), "/srv/app")),
        ("77", ContainerUser(77, 78, (), "/digits")),
        # A named group stands alone.
        ("app:video", ContainerUser(1000, 44, (), "/srv/app")),
        ("app:0", ContainerUser(1000, 0, (), "/srv/app")),
        ("app:54321", ContainerUser(1000, 54321, (), "/srv/app")),
        (":video", ContainerUser(0, 44, (), "/root")),
        ("12345", ContainerUser(12345, 0, (), "/")),
        ("12345:12", ContainerUser(12345, 12, (), "/")),
        ("12345:adm", ContainerUser(12345, 4, (), "/")),
        ("nohome", ContainerUser(5, 50, (), "/")),
        ("2147483647", ContainerUser(2147483647, 0, (), "/")),
        # Numbers as Go's strconv.Atoi reads them, and empty parts as if they were not there.
        ("1000:", ContainerUser(1000, 1001, (4, 6, 44), "/srv/app")),
        ("app:", ContainerUser(1000, 1001, (4, 6, 44), "/srv/app")),
        ("+1000", ContainerUser(1000, 1001, (4, 6, 44), "/srv/app")),
        ("+12345:+12", ContainerUser(12345, 12, (), "/")),
        ("0000000000001000", ContainerUser(1000, 1001, (4, 6, 44), "/srv/app")),
        ("-0", ContainerUser(0, 0, (6,), "/root")),
        (":5", ContainerUser(0, 5, (), "/root")),
        (":", ContainerUser(0, 0, (6,), "/root")),
    ],
)
def test_resolution(image: FolderImage, wanted: str, expected: ContainerUser) -> None:
    assert resolve_user(image, wanted) == expected


@pytest.mark.parametrize(
    "wanted",
    [
        "nobody",
        "app:wheel",
        "broken",
        "0x3e8",
        "1_000",
        "1000app",
        "+",
        "++5",
        "+ 5",
        "١٢",
        "7:0x1",
    ],
)
def test_unknown_names(image: FolderImage, wanted: str) -> None:
    with pytest.raises(NotFoundError, match="the image has no") as caught:
        resolve_user(image, wanted)
    assert caught.value.hint


@pytest.mark.parametrize(
    "wanted",
    [
        *("a:b:c", "1000::", "2147483648", "99999999999999999999", "0:2147483648"),
        *("-5", "0:-1", "+2147483648", "9" * 5000),
    ],
)
def test_malformed(image: FolderImage, wanted: str) -> None:
    with pytest.raises(UsageError):
        resolve_user(image, wanted)


def test_an_image_without_passwd(tmp_path: Path) -> None:
    image = FolderImage(tmp_path)
    assert resolve_user(image, "") == ContainerUser(0, 0, (), "/")
    assert resolve_user(image, "7:8") == ContainerUser(7, 8, (), "/")
    with pytest.raises(NotFoundError):
        resolve_user(image, "root")


def test_passwd_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "etc/passwd").mkdir(parents=True)
    assert resolve_user(FolderImage(tmp_path), "0") == ContainerUser(0, 0, (), "/")


def test_passwd_that_is_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_user, "MAX_FILE_BYTES", 10)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    with pytest.raises(FormatError, match="/etc/passwd"):
        resolve_user(FolderImage(tmp_path), "app")


def test_passwd_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/passwd").write_text(PASSWD)
    (tmp_path / "etc/passwd").symlink_to("/usr/passwd")
    assert resolve_user(FolderImage(tmp_path), "app").uid == 1000


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed(data: bytes) -> None:
    for entry in parse_passwd(data):
        assert entry.name
        assert 0 <= entry.uid <= container_user.MAX_ID
        assert entry.home
    for group in parse_group(data):
        assert group.name
        assert 0 <= group.gid <= container_user.MAX_ID
