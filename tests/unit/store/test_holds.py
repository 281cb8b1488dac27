from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.store.test_space import COUNT, fill, open_blob

from lamina.store.holds import HoldRecord, held_blobs
from lamina.store.node import NodeStore


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bdi"
    folder.mkdir()
    monkeypatch.setattr("lamina.store.holds.SYSFS", str(folder))
    return folder


def watch(before: list[Path], paths: list[Path]) -> Any:
    return SimpleNamespace(
        before=frozenset(map(str, before)), paths=tuple(str(path) for path in paths)
    )


def test_a_mount_holds_its_blobs_whatever_becomes_of_the_server(
    tmp_path: Path, sysfs: Path
) -> None:
    store = NodeStore(tmp_path / "store")
    old, new = sysfs / "erofs-1", sysfs / "erofs-2"
    old.mkdir()
    with open_blob(store) as blob:
        fill(blob, range(COUNT))
        blob.hold_through(watch([old], []))
        new.mkdir()
        assert store.space.evict(1) == 0, "killed between mounting and telling"
        blob.hold_through(watch([old], [new]))
    assert store.space.evict(1) == 0
    new.rmdir()
    assert store.space.evict(1) > 0
    assert list((store.root / "holds").iterdir()) == []


def test_before_the_mount_exists_nothing_is_held_by_the_record(tmp_path: Path, sysfs: Path) -> None:
    (sysfs / "erofs-1").mkdir()
    (sysfs / "ext4-9").mkdir()
    record = HoldRecord(tmp_path, "blob")
    record.write([str(sysfs / "erofs-1")], [])
    assert held_blobs(tmp_path) == frozenset()


def test_closing_removes_what_no_longer_counts(tmp_path: Path, sysfs: Path) -> None:
    mount = sysfs / "erofs-3"
    mount.mkdir()
    store = NodeStore(tmp_path / "store")
    blob = open_blob(store)
    blob.hold_through(watch([], [mount]))
    mount.rmdir()
    blob.close()
    assert list((store.root / "holds").iterdir()) == []


def test_another_boot(tmp_path: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = sysfs / "erofs-3"
    mount.mkdir()
    HoldRecord(tmp_path, "blob").write([], [str(mount)])
    assert held_blobs(tmp_path) == {"blob"}
    monkeypatch.setattr("lamina.store.holds.current_boot_id", lambda: b"another boot".ljust(16))
    assert held_blobs(tmp_path) == frozenset()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"boot": 1', b'{"future": true}'])
def test_what_is_not_understood_holds(tmp_path: Path, sysfs: Path, content: bytes) -> None:
    (tmp_path / "holds").mkdir(mode=0o700)
    (tmp_path / "holds" / "a.blob.1234").write_bytes(content)
    assert held_blobs(tmp_path) == {"a.blob"}
    assert held_blobs(tmp_path / "absent") == frozenset()
