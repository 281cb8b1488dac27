"""What is mounted, while records change hands between the look at one thing and at the next."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lamina.errors import NotFoundError, UsageError
from lamina.linux.process import start_time_ticks
from lamina.opening.request import OpenRequest
from lamina.serve import mounts
from lamina.serve.mount_records import MountRecord, MountRecords
from lamina.serve.mounts import MountState, clear_mountpoint, list_mounts, unmount, unmount_all
from lamina.serve.service.client import ServiceStatus
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.messages import Coverage, Drop, Mounted
from lamina.serve.service.mount_watcher import MountWatcher
from lamina.serve.service.spec import Lease, MountSpec

Change = Callable[[], None]


def record(mountpoint: str = "/mnt", number: int = 1, *, service: bool = True) -> MountRecord:
    return MountRecord(
        image="oci:x", digest="", mountpoint=mountpoint, device="fanotify",
        device_number=f"0:{number}", mount_id=number, pid=0, start_ticks=7, store="/store",
        service=service,
    )  # fmt: skip


class Machine:
    """The mounts there are, the service that knows some of them, and what happens while it is
    asked.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        monkeypatch.setenv("LAMINA_RUNTIME", str(folder))
        self.records = MountRecords()
        self.attached: set[int] = set()
        self.served: set[str] = set()
        self.meanwhile: list[Change] = []
        """What happens each time, behind what the service tells."""
        self.at_detaching: Change = lambda: None
        monkeypatch.setattr(mounts, "service_status", self.status)
        monkeypatch.setattr(mounts, "find_attached", self.find_attached)
        monkeypatch.setattr(mounts, "read_mount_table", list)
        monkeypatch.setattr(mounts, "detach", self.detach)

    def make(self, made: MountRecord) -> None:
        self.attached.add(made.mount_id)
        if made.service:
            self.served.add(made.mountpoint)
        self.records.write(made)

    def become_resident(self, made: MountRecord) -> None:
        self.records.replace(made, made.as_resident())
        self.served.discard(made.mountpoint)

    def end(self, made: MountRecord) -> None:
        self.attached.discard(made.mount_id)
        self.served.discard(made.mountpoint)
        self.records.remove(made)

    def status(self, mountpoints: Sequence[str] | None = None) -> ServiceStatus:
        known = {
            name: Coverage() for name in self.served if mountpoints is None or name in mountpoints
        }
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return ServiceStatus({"worker": 1}, known)

    def find_attached(self, records: Sequence[MountRecord]) -> list[MountRecord]:
        return [each for each in records if each.mount_id in self.attached]

    def detach(self, _mountpoint: str, _device: str, *, lazy: bool) -> None:
        self.attached -= {each.mount_id for each in self.records.all()}
        self.at_detaching()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def states(mountpoint: str | None = None) -> dict[str, MountState]:
    return {each.record.mountpoint: each.state for each in list_mounts(mountpoint)}


@pytest.mark.parametrize("mountpoint", [None, "/mnt"])
def test_one_that_becomes_resident_meanwhile(machine: Machine, mountpoint: str | None) -> None:
    machine.make(record())
    machine.meanwhile = [lambda: machine.become_resident(record())]
    assert states(mountpoint) == {"/mnt": MountState.RESIDENT}


@pytest.mark.parametrize("mountpoint", [None, "/mnt"])
def test_one_that_is_mounted_anew_meanwhile(machine: Machine, mountpoint: str | None) -> None:
    def again() -> None:
        machine.end(record())
        machine.make(record(number=2))

    machine.make(record())
    machine.meanwhile = [again]
    assert states(mountpoint) == {"/mnt": MountState.SERVED}
    assert machine.records.read("/mnt") == record(number=2)


def test_one_that_is_made_meanwhile_is_neither_broken_nor_forgotten(machine: Machine) -> None:
    machine.make(record())
    machine.meanwhile = [lambda: machine.make(record("/other", 2))]
    assert states() == {"/mnt": MountState.SERVED, "/other": MountState.SERVED}


def test_one_that_ends_meanwhile(machine: Machine) -> None:
    machine.make(record())
    machine.meanwhile = [lambda: machine.end(record())]
    assert states() == {}
    assert machine.records.all() == []


def test_it_comes_to_an_end_whatever_happens(machine: Machine) -> None:
    def again() -> None:
        number = max(machine.attached)
        machine.end(record(number=number))
        machine.make(record(number=number + 1))
        machine.meanwhile.append(again)

    machine.make(record())
    machine.make(record("/other", 1000, service=False).as_resident())
    machine.attached.discard(1000)
    machine.attached.add(1)
    machine.meanwhile = [again]
    list_mounts()


def test_what_needs_nobody_is_resident_while_others_are_served(machine: Machine) -> None:
    """The supervisor that its record tells of lives on."""
    ticks = start_time_ticks(os.getpid()) or 0
    made = MountRecord(
        image="oci:x", digest="", mountpoint="/mnt", device="fuse-blob", device_number="0:1",
        mount_id=1, pid=os.getpid(), start_ticks=ticks, store="/store", service=True,
    )  # fmt: skip
    machine.make(made)
    machine.become_resident(made)
    assert states() == {"/mnt": MountState.RESIDENT}
    unmount("/mnt")
    assert machine.records.all() == []


def test_one_that_becomes_resident_while_it_is_unmounted(machine: Machine) -> None:
    machine.make(record())
    machine.at_detaching = lambda: machine.become_resident(record())
    assert unmount("/mnt") == record()
    assert machine.records.all() == []


def test_one_that_becomes_resident_is_not_taken_for_the_next(machine: Machine) -> None:
    """It was unmounted, and another one mounted, before the service has noticed."""
    machine.make(record())
    machine.end(record())
    machine.make(record(number=2))
    mount = MountHandover("1-1", cast("Any", None), "fanotify", record=record())
    watcher = MountWatcher(
        cast("Any", SimpleNamespace(watch=lambda *_: 0, drop=lambda *_, **__: 0))
    )
    watcher.resident(mount)
    watcher.close()
    assert states() == {"/mnt": MountState.SERVED}


def test_those_that_end_by_themselves_are_no_reason_to_leave_the_others(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a mount namespace that is gone, which the service notices a moment later."""
    made = [record("/a", 1), record("/b", 2), record("/c", 3)]
    for each in made:
        machine.make(each)

    def notice() -> None:
        for each in made:
            if each.mount_id not in machine.attached or each.mountpoint == "/b":
                machine.end(each)

    def detach(mountpoint: str, _device: str, *, lazy: bool) -> None:
        machine.attached -= {each.mount_id for each in made if each.mountpoint == mountpoint}
        notice()

    monkeypatch.setattr(mounts, "detach", detach)
    assert [each.mountpoint for each in unmount_all()] == ["/a", "/c"]
    assert machine.records.all() == []


def test_a_folder_is_clear_when_what_was_broken_there_has_ended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make(record())
    machine.served.clear()

    def ended(*_: object, **__: object) -> MountRecord:
        raise NotFoundError("no image is mounted at /mnt")

    monkeypatch.setattr(mounts, "unmount", ended)
    clear_mountpoint("/mnt")


def test_a_folder_with_a_mount_is_not_clear(machine: Machine) -> None:
    machine.make(record())
    machine.meanwhile = [lambda: machine.become_resident(record())]
    with pytest.raises(UsageError, match="is mounted at /mnt already"):
        clear_mountpoint("/mnt")


def test_a_folder_is_known_to_the_worker_when_the_first_mount_of_its_superblock_goes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    supervisor = SimpleNamespace(
        watch=lambda *_: 0, forget=lambda *_: 0, note=lambda *_: 0, tell_worker=told.append
    )
    watcher = MountWatcher(cast("Any", supervisor))

    def drop(mount: MountHandover, **_: object) -> None:
        watcher.discard(mount)
        told.append(Drop(number=mount.number))

    supervisor.drop = drop
    lease = Lease.of_this_process()
    specs = [
        MountSpec(image=OpenRequest(reference="oci:x"), mountpoint=name, lease=each)
        for name, each in (("/a", None), ("/b", lease))
    ]
    first = MountHandover("1-1", specs[0], "fuse", record=record("/a", 1), watch=("/x",))
    other = MountHandover("1-2", specs[1], "fuse", record=record("/b", 2), shares="1-1")
    for each in (first, other):
        watcher.add(each)
    machine.attached = {2}
    monkeypatch.setattr("lamina.serve.service.mount_watcher.find_attached", machine.find_attached)
    monkeypatch.setattr("os.path.exists", lambda _: True)
    watcher.look()
    watcher.close()
    assert [type(each) for each in told] == [Mounted, Drop]
    assert first.record == record("/b", 2)
    assert first.spec.lease == lease
