"""Records of mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.linux.process import start_time_ticks
from lamina.serve.mount_records import MountRecord, MountRecords


def record(mountpoint: str = "/mnt/ä\udcff", **changes: object) -> MountRecord:
    fields: dict[str, object] = {
        "image": "docker://localhost/a:1",
        "digest": "sha256:00",
        "mountpoint": mountpoint,
        "device": "fuse-blob",
        "device_number": "0:77",
        "pid": os.getpid(),
        "start_ticks": start_time_ticks(os.getpid()),
        "store": "/var/lib/lamina",
    }
    return MountRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("mountpoint", ["/mnt", "/mnt/with space", "/mnt/ä", "/m\udcff"])
def test_records_come_back(tmp_path: Path, mountpoint: str) -> None:
    records = MountRecords(tmp_path)
    written = record(mountpoint)
    records.write(written)
    assert records.read(mountpoint) == written
    assert records.all() == [written]
    assert [path.suffix for path in (tmp_path / "mounts").iterdir()] == [".json"]
    records.remove(written)
    assert records.all() == []
    assert list((tmp_path / "mounts").iterdir()) == []


def test_a_newer_record_is_not_removed(tmp_path: Path) -> None:
    records = MountRecords(tmp_path)
    old, new = record(pid=1), record()
    records.write(old)
    records.write(new)
    records.remove(old)
    assert records.all() == [new]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"image": 3}', b"\xff", b"[" * 100_000])
def test_damaged_records_count_as_none(tmp_path: Path, text: bytes) -> None:
    records = MountRecords(tmp_path)
    records.write(record())
    (path,) = (tmp_path / "mounts").iterdir()
    path.write_bytes(text)
    assert records.all() == []


def test_who_serves() -> None:
    assert record().served
    assert not record(start_ticks=1).served, "the pid belongs to another process by now"
    assert not record(pid=2**22 + 1).served
