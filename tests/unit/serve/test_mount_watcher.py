"""Mounts whose records cannot be written are kept track of all the same."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from lamina.errors import StoreError
from lamina.linux.process import start_time_ticks
from lamina.opening.request import OpenRequest
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.service import mount_watcher
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.mount_watcher import MountWatcher
from lamina.serve.service.spec import Lease, MountSpec
from lamina.serve.service.supervisor import Supervisor

RECORD = MountRecord(
    image="oci:x", digest="", mountpoint="/mnt", device="fanotify", device_number="0:1", pid=0,
    start_ticks=0, store="/store", service=True,
)  # fmt: skip


class Told:
    """A supervisor that notes what it is to let go of."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def watch(self, *_: object) -> None:
        pass

    def forget(self, *_: object) -> None:
        pass

    def drop(self, mount: MountHandover, **_: object) -> None:
        self.dropped.append(mount.number)


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Told:
    def fail(*_: object) -> None:
        raise StoreError("cannot write a record: no space left on device")

    monkeypatch.setattr(MountRecords, "write", fail)
    monkeypatch.setattr(MountRecords, "replace", fail)
    return Told()


@pytest.fixture
def watcher(supervisor: Told) -> Iterator[MountWatcher]:
    watcher = MountWatcher(cast("Any", supervisor))
    yield watcher
    watcher.close()


@pytest.fixture
def mount() -> MountHandover:
    spec = MountSpec(image=OpenRequest(reference="oci:x"), mountpoint="/mnt")
    return MountHandover("1-1", spec, "fanotify", record=RECORD, watch=("/sys/x",))


def test_one_that_needs_nobody_is_served_on(
    watcher: MountWatcher, supervisor: Told, mount: MountHandover
) -> None:
    watcher.resident(mount)
    assert supervisor.dropped == []


def test_the_end_of_a_new_one_is_noticed(
    watcher: MountWatcher, supervisor: Told, mount: MountHandover
) -> None:
    state = SimpleNamespace(mounts={})
    keeper = SimpleNamespace(state=state, _ends=watcher, note=lambda *_: None)
    with pytest.raises(StoreError, match="no space"):
        Supervisor.keep(cast("Any", keeper), mount)
    watcher.look()
    assert supervisor.dropped == ["1-1"]


def test_a_lease_ends_with_its_process(
    watcher: MountWatcher, mount: MountHandover, monkeypatch: pytest.MonkeyPatch
) -> None:
    detached: list[str] = []
    monkeypatch.setattr(
        mount_watcher, "detach", lambda mountpoint, *_, **__: detached.append(mountpoint)
    )
    with subprocess.Popen(["sleep", "99"]) as process:
        ticks = start_time_ticks(process.pid)
        assert ticks is not None
        for lease in (Lease(process.pid, ticks + 1), Lease(process.pid, ticks)):
            mount.spec = msgspec.structs.replace(mount.spec, lease=lease)
            watcher.add(mount)
            watcher.discard(mount)
        assert detached == ["/mnt"], "the first pid is another process's by now"
        process.kill()
        process.wait()
    watcher.add(mount)
    assert detached == ["/mnt", "/mnt"]


def test_a_mount_that_comes_makes_nobody_look_at_all_others(
    supervisor: Told, mount: MountHandover, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: set[int] = {1, 2, 3}
    looks: list[int] = []

    def attached(records: list[MountRecord]) -> list[MountRecord]:
        looks.append(len(records))
        return [each for each in records if each.mount_id in there]

    monkeypatch.setattr(mount_watcher, "mounted_ids", lambda: frozenset(there))
    monkeypatch.setattr(mount_watcher, "find_attached", attached)
    with contextlib.closing(MountWatcher(cast("Any", supervisor))) as watcher:
        for number in (1, 2, 3):
            record = msgspec.structs.replace(RECORD, mountpoint=f"/mnt{number}", mount_id=number)
            shares = "1-1" if number > 1 else ""
            spec = msgspec.structs.replace(mount.spec, mountpoint=record.mountpoint)
            fds = {} if shares else {"device": -1}
            watcher.add(MountHandover(f"1-{number}", spec, "fuse", fds, record, shares=shares))
        watcher.look()
        assert looks == []
        there.add(9)
        watcher._table_changed()
        watcher.look()
        assert (looks, supervisor.dropped) == ([], [])
        there.discard(2)
        watcher._table_changed()
        watcher.look()
        assert (looks, supervisor.dropped) == ([3], ["1-2"])
