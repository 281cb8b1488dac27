"""Folders of a container, and what is taken out of its changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.errors import StoreError, UsageError
from lamina.serve.container_folders import create_folders
from lamina.serve.overlay import has_changes, prune_mount_points


def test_random_and_given_names(tmp_path: Path) -> None:
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    first, second = create_folders(store, None, run), create_folders(store, None, run)
    assert first.container_id != second.container_id
    named = create_folders(store, "box", run)
    assert named.bundle == f"{run}/containers/box"
    assert named.upper == f"{store}/containers/box/upper"
    for folder in (named.bundle, named.changes, named.image, named.rootfs):
        assert os.stat(folder).st_mode & 0o777 == 0o700
    with pytest.raises(UsageError, match="'box'") as caught:
        create_folders(store, "box", run)
    assert "`lamina rm -f box`" in str(caught.value.hint)


def test_a_name_whose_changes_are_kept(tmp_path: Path) -> None:
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    folders = create_folders(store, "box", run)
    os.mkdir(folders.upper)
    Path(folders.upper, "file").write_text("")
    folders.remove(keep_changes=True)
    assert not os.path.exists(folders.bundle)
    with pytest.raises(UsageError, match="'box'") as caught:
        create_folders(store, "box", run)
    assert "`lamina rm box`" in str(caught.value.hint)
    assert not os.path.exists(folders.bundle)
    folders.remove(keep_changes=False)
    assert not os.path.exists(folders.changes)
    folders.remove(keep_changes=False)


def test_the_last_container_beside_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the folder of all away, at any moment."""
    make, times = os.mkdir, iter(range(2))

    def mkdir(path: str, mode: int = 0o777) -> None:
        if path.endswith("/box") and next(times, None) is not None:
            os.rmdir(os.path.dirname(path))
        make(path, mode)

    monkeypatch.setattr("lamina.serve.container_folders.os.mkdir", mkdir)
    folders = create_folders(str(tmp_path / "store"), "box", str(tmp_path / "run"))
    assert os.path.isdir(folders.changes)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 129, "é", "a\n"])
def test_malformed_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        create_folders(str(tmp_path / "store"), name, str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="store"):
        create_folders(str(tmp_path / "store"), "box", str(tmp_path / "run"))
    assert not (tmp_path / "run/containers/box").exists()


def test_mount_points_are_no_changes(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in ("etc", "kept", "other"):
        (lower / folder).mkdir(parents=True)
    (lower / "empty").write_text("")
    for folder in ("etc", "proc", "a/b", "kept", "other", "full"):
        (upper / folder).mkdir(parents=True)
    (upper / "etc/hosts").write_text("")
    (upper / "full/file").write_text("x")
    (upper / "empty").write_text("")
    (upper / "other").chmod(0o700)
    targets = ["/proc", "/etc/hosts", "/a/b", "/kept", "/other", "/full", "/empty", "/absent/x"]
    prune_mount_points(str(upper), targets, str(lower))
    left = sorted(str(path.relative_to(upper)) for path in upper.rglob("*"))
    assert left == ["empty", "full", "full/file", "other"]
    assert has_changes(str(upper))


def test_nothing_but_mount_points(tmp_path: Path) -> None:
    (tmp_path / "upper/proc").mkdir(parents=True)
    (tmp_path / "lower").mkdir()
    prune_mount_points(str(tmp_path / "upper"), ["/proc"], str(tmp_path / "lower"))
    assert not has_changes(str(tmp_path / "upper"))


def test_mount_points_behind_links_are_not_touched(tmp_path: Path) -> None:
    """A container that ran as root decides what its folder of changes looks like."""
    upper, host = tmp_path / "upper", tmp_path / "host"
    for folder in (upper / "real", host / "folder", tmp_path / "lower"):
        folder.mkdir(parents=True)
    (host / "file").write_text("")
    (upper / "data").symlink_to(host)
    (upper / "real/up").symlink_to("../../host")
    targets = ["/data/file", "/data/folder", "/real/up/file", "/real/../../host/file", "/data"]
    prune_mount_points(str(upper), targets, str(tmp_path / "lower"))
    assert sorted(path.name for path in host.iterdir()) == ["file", "folder"]
