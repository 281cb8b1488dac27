"""Opening a disk in a guest: what the host says of it begins nothing in the table with the key."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.errors import Error, UsageError
from lamina.guest import open_disk as module
from lamina.guest.agent import GuestSettings
from lamina.guest.disk_plan import DiskPlan, init_data_line
from lamina.guest.open_disk import open_disk
from lamina.trust.broker.kbs_packet import ResourcePath
from lamina.trust.crypto.secret import Secret

KEY = bytes(range(64))


class Client:
    """A broker that has the key."""

    def fetch(self, _resource: ResourcePath) -> Secret:
        return Secret(KEY)


class Kernel:
    """What dmsetup was told, on its command line and on its standard input."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.tables: list[str] = []
        self.fails = ""

    def run(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command[1:])
        if command[1] == "create":
            self.tables.append(str(options["input"]))
        return subprocess.CompletedProcess(command, int(command[1] == self.fails), "7\n", "no")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    @contextmanager
    def broker(_settings: GuestSettings) -> Iterator[Client]:
        yield Client()

    found = Kernel()
    monkeypatch.setattr(module, "guest_broker", broker)
    monkeypatch.setattr(module.subprocess, "run", found.run)
    monkeypatch.setattr(module, "_look_at", lambda *_: None)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> GuestSettings:
    plan = DiskPlan(key="kbs:///team/disk/app", root_hash="ab" * 32, data_blocks=8)
    path = tmp_path / "initdata.toml"
    head = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    path.write_text(f"{head}{init_data_line(plan)}\n")
    return GuestSettings(work=tmp_path / "work", init_data=str(path))


def test_the_key_is_where_the_kernel_takes_it_for_one(
    kernel: Kernel, settings: GuestSettings
) -> None:
    """Whatever the device is called."""
    assert open_disk("/dev/KEY", "app", settings) == "/dev/dm-7"
    words = kernel.tables[0].split()
    assert words[4] == KEY.hex() and words[6] == "/dev/KEY"
    assert len(kernel.tables[0].splitlines()) == 1
    assert KEY.hex() not in kernel.tables[1] + repr(kernel.commands)


@pytest.mark.parametrize(
    "device", ["/dev/vda\t0\n8 8 KEY", "/dev/vda\n8 8 error", "/dev/vda 0", "vda", "", "/dev/é"]
)
def test_a_device_that_would_be_more_than_a_word_of_the_table_is_refused(
    device: str, kernel: Kernel, settings: GuestSettings
) -> None:
    with pytest.raises(UsageError, match="no path of a device"):
        open_disk(device, "app", settings)
    assert not kernel.commands


def test_no_decrypted_disk_is_left_behind(kernel: Kernel, settings: GuestSettings) -> None:
    kernel.fails = "info"
    with pytest.raises(Error, match="dmsetup info failed"):
        open_disk("/dev/vda", "app", settings)
    assert kernel.commands[-1][0] == "remove" and kernel.commands[-1][-1] == "app-crypt"
