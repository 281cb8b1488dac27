"""Records of mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.errors import FetchError, IntegrityError, KernelError, StoreError
from lamina.linux.process import start_time_ticks
from lamina.linux.syscalls import SyscallError
from lamina.serve import state
from lamina.serve.reported_error import decode_error, encode_error
from lamina.serve.state import MountRecord, MountRecords, mounting_lock, state_directory


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


def test_state_folder_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid or 1)
    monkeypatch.delenv("LAMINA_RUNTIME", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if os.stat(tmp_path).st_uid == 0:
        os.chown(tmp_path, 1, 1)
        with pytest.raises(StoreError, match="only you"):
            state_directory()
        os.chown(tmp_path / "lamina", 1, 1)
    assert state_directory() == tmp_path / "lamina"
    (tmp_path / "lamina").chmod(0o777)
    with pytest.raises(StoreError, match="only you"):
        state_directory()


def test_a_state_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path / "absent" / "below"))
    with pytest.raises(StoreError, match=r"below: No such file or directory$"):
        state_directory()


@pytest.mark.parametrize("error", [IntegrityError("no"), FetchError("x\ny", hint="try äöü")])
def test_errors_travel(error: FetchError | IntegrityError) -> None:
    found = decode_error(encode_error(error))
    assert type(found) is type(error)
    assert (str(found), found.hint) == (str(error), error.hint)


def test_subclasses_travel_as_their_family() -> None:
    found = decode_error(encode_error(SyscallError("mount", 1, "cannot mount")))
    assert type(found) is KernelError
    assert "mount failed with EPERM" in str(found)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"family": "errno", "message": 1}'])
def test_what_is_no_error_report(data: bytes) -> None:
    assert type(decode_error(data)) is KernelError


def test_a_mount_that_never_ends_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    monkeypatch.setattr(state, "_AFTER_ABORT_S", 0.05)
    aborted: list[int] = []
    monkeypatch.setattr(state, "abort_connection", aborted.append)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with mounting_lock() as first:
        first.note_connection(77)
        with (
            pytest.raises(KernelError, match=rf"\(process {os.getpid()}\) has not come to an end"),
            mounting_lock(deadline_s=0.05),
        ):
            pass
    assert aborted == [77]


def test_a_mount_that_ends_when_its_connection_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    first = mounting_lock()
    first.__enter__().note_connection(77)
    monkeypatch.setattr(state, "abort_connection", lambda _: first.__exit__(None, None, None))
    with mounting_lock(deadline_s=0.05):
        pass
    assert (tmp_path / "mounting.lock").read_bytes() == b"", "nothing is left to abort"
