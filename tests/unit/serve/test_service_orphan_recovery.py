"""A worker that outlives the others of its service."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import FormatError
from lamina.opening.request import OpenRequest
from lamina.serve.mount_records import MountRecord
from lamina.serve.service import orphan_recovery, program
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.messages import PROTOCOL
from lamina.serve.service.spec import MountSpec
from lamina.serve.service.start import open_lock, try_lock
from lamina.serve.service.state import ServiceState
from lamina.serve.service.systemd_fdstore import describe_stored

RECORD = MountRecord(
    image="oci:ä\udcff", digest="sha256:1", mountpoint="/mnt", device="fuse", device_number="0:9",
    pid=5, start_ticks=6, store="/store", service=True,
)  # fmt: skip
# As 76f8115 wrote it, in json.dumps() of plain dictionaries.
OLD_MOUNT = """{"number": "7-1", "spec": {"reference": "oci:\\u00e4\\udcff", "mountpoint": "/mnt",
"store": "/store", "store_budget": null, "device": "fuse", "options": [], "platform": null,
"index": "auto", "decryption_keys": [], "key_providers": null, "key_broker": null, "policy": null,
"allow_older": false, "client": {}, "complete": false, "limit_rate": null, "pinned": null,
"opener": "lamina.serve.service.spec:open_reference", "extra": {}}, "device": "fuse",
"names": ["device", "blob.3"], "record": {"image": "oci:\\u00e4\\udcff", "digest": "sha256:1",
"mountpoint": "/mnt", "device": "fuse", "device_number": "0:9", "pid": 5, "start_ticks": 6,
"store": "/store", "service": true, "resident": false}, "watch": ["/sys/x"], "connection": 77,
"before": []}"""


class WaitsError(Exception):
    """Instead of waiting for ever."""


class Started:
    """Instead of a program; fails at first if told so."""

    returncode: int | None = None
    commands: list[list[str]]
    failures = 0

    def __init__(self, command: list[str], *, stdin: int, pass_fds: tuple[int, ...]) -> None:
        del stdin
        if Started.failures:
            Started.failures -= 1
            raise OSError(errno.ENOMEM, "no memory")
        assert int(command[-1]) in pass_fds
        Started.commands.append(command)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ServiceState]:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path))

    def pause() -> None:
        raise WaitsError

    Started.commands, Started.failures = [], 0
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(signal, "pause", pause)
    monkeypatch.setattr(orphan_recovery, "RETRY_S", 0.01)
    with socket.socket() as listener:
        state = ServiceState(listener, -1)
        yield state
        state.note_worker(-1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("failures", [0, 2])
def test_the_last_of_all_begins_a_new_service(
    state: ServiceState, known: bool, failures: int
) -> None:
    Started.failures = failures
    with pytest.raises(WaitsError):
        orphan_recovery.recover_service(state, {}, known=known)
    (command,) = Started.commands
    expected = program.service_command("--restored")
    assert command[: len(expected)] == expected


def test_one_that_nobody_knows_waits_for_others_and_goes(
    state: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphan_recovery, "UNKNOWN_S", 0.05)
    holders = open_lock()
    try:
        assert try_lock(holders)
        orphan_recovery.recover_service(state, {}, known=False)
        assert Started.commands == []
    finally:
        os.close(holders)
        os.close(state.lock_fd)


def a_mount() -> MountHandover:
    image = OpenRequest(reference="oci:ä\udcff", store="/store")
    spec = MountSpec(image=image, mountpoint="/mnt", device="fuse")
    fds = {"device": os.open("/dev/null", os.O_RDONLY), "blob.3": os.open("/dev/null", os.O_RDONLY)}
    return MountHandover("7-1", spec, "fuse", fds, RECORD, ("/sys/x",), 77)


@pytest.mark.parametrize("old", [False, True], ids=["now", "76f8115"])
def test_what_is_left_is_all_there(state: ServiceState, old: bool) -> None:
    mount = a_mount()
    state.mounts = {"7-1": mount}
    state.lock_fd = open_lock()
    state.note_worker(os.pidfd_open(os.getpid()))
    memory = old_state(state, mount) if old else orphan_recovery.write_state(state)
    found = orphan_recovery.read_state(memory)
    try:
        assert found.mounts == state.mounts
        assert found.lingering == state.lingering
        assert (found.lock_fd, found.worker_pidfd) == (state.lock_fd, state.worker_pidfd)
        assert found.listener.fileno() == state.listener.fileno()
    finally:
        found.listener.detach()
        mount.close()
        os.close(state.lock_fd)


def old_state(state: ServiceState, mount: MountHandover) -> int:
    document = {
        "listener": state.listener.fileno(),
        "lock": state.lock_fd,
        "worker": state.worker_pidfd,
        "lingering": False,
        "mounts": [{"mount": json.loads(OLD_MOUNT), "fds": list(mount.fds.values())}],
    }
    fd = os.memfd_create("old", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(document).encode())
    return fd


def test_what_an_old_service_stored_is_read() -> None:
    mount = a_mount()
    assert describe_stored(json.loads(OLD_MOUNT)) == mount.describe()
    mount.close()


def test_a_state_of_a_newer_version_is_refused(state: ServiceState) -> None:
    state.lock_fd = open_lock()
    state.note_worker(os.pidfd_open(os.getpid()))
    memory = orphan_recovery.write_state(state)
    document = json.loads(os.pread(memory, 1 << 20, 0))
    assert document["version"] == PROTOCOL
    os.pwrite(memory, json.dumps({**document, "version": PROTOCOL + 1}).encode(), 0)
    with pytest.raises(FormatError, match="newer"):
        orphan_recovery.read_state(memory)
    os.close(state.lock_fd)


def test_a_way_to_open_images_that_is_gone_is_refused() -> None:
    fields = json.loads(OLD_MOUNT)
    fields["spec"]["opener"] = "os:system"
    with pytest.raises(FormatError, match="cannot be opened"):
        describe_stored(fields)
