"""``lamina service status``, ``stop`` and ``reload``, with a service that has mounts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.linux.process import start_time_ticks
from lamina.serve.mounts import list_mounts
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service.control import service_facts
from tests.support.serving import is_mounted, start, write_sample
from tests.support.tools import require_root
from tests.support.waiting import wait_for_no_mounts

pytestmark = pytest.mark.kernel


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """A mount of the sample image, made by the service."""
    require_root()
    folder = tmp_path / "image"
    write_sample(folder)
    point = tmp_path / "mnt"
    point.mkdir()
    start(folder, point, tmp_path / "store", "fuse")
    yield point
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (line,) = capsys.readouterr().out.splitlines()
    answer: dict[str, object] = json.loads(line)
    return answer


def test_status_tells_who_serves(mountpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "status", "--json"]) == 0
    answer = told(capsys)
    (mount,) = list_mounts()
    assert answer == {
        "pids": mount.pids,
        "mounts": 1,
        "socket": f"{state_directory()}/service.sock",
        "log": f"{state_directory()}/service.log",
        "managed": False,
    }
    assert main(["service", "status"]) == 0
    text = capsys.readouterr().out
    assert str(mount.pids["supervisor"]) in text and "1" in text
    assert main(["umount", "--all"]) == 0


def test_the_manager_of_who_starts_it_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with a snapshotter below systemd, whose stop would leave a service that cannot be."""
    require_root()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        write_sample(tmp_path / "image")
        (tmp_path / "mnt").mkdir()
        start(tmp_path / "image", tmp_path / "mnt", tmp_path / "store", "fuse")
        try:
            assert main(["service", "stop", "--json"]) == 0, capsys.readouterr().err
            assert told(capsys) == {"stopped": True, "mounts": 1}
            assert not is_mounted(tmp_path / "mnt")
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(1 << 16)
        finally:
            main(["umount", "--all"])


def test_signals_that_its_starter_holds_back_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_root()
    write_sample(tmp_path / "image")
    (tmp_path / "mnt").mkdir()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        start(tmp_path / "image", tmp_path / "mnt", tmp_path / "store", "fuse")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        assert main(["service", "stop", "--json"]) == 0, capsys.readouterr().err
        assert not is_mounted(tmp_path / "mnt")
    finally:
        main(["umount", "--all"])


def test_stop_unmounts_what_is_in_use_and_waits(
    mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = service_facts()
    assert facts is not None
    file = os.open(mountpoint / "sizes" / "1", os.O_RDONLY)
    assert main(["service", "stop", "--json"]) == 0
    assert not is_mounted(mountpoint)
    with contextlib.suppress(OSError):
        # Nobody is there to be told.
        os.close(file)
    assert told(capsys) == {"stopped": True, "mounts": 1}
    assert [start_time_ticks(pid) for pid in facts.pids.values()] == [None] * 3
    wait_for_no_mounts()


def test_reload_replaces_all_processes_under_a_mount(
    mountpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = service_facts()
    with (mountpoint / "sizes" / "1").open("rb") as file:
        assert main(["service", "reload", "--json"]) == 0
        assert told(capsys) == {"reloaded": True}
        assert len(file.read()) == 1
    after = service_facts()
    assert before is not None and after is not None and after.mounts == 1
    assert not set(before.pids.values()) & set(after.pids.values())
    assert main(["umount", "--all"]) == 0


@pytest.mark.parametrize("action", ["status", "stop", "reload", "upgrade"])
def test_without_a_service(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", action, "--json"]) == 7
    assert told(capsys)["error"]


def test_the_log_has_a_line_for_each_mount_and_its_end(mountpoint: Path) -> None:
    log = state_directory() / "service.log"
    assert f"{mountpoint} is mounted: " in log.read_text()
    assert "is unmounted" not in log.read_text()
    assert main(["umount", os.fspath(mountpoint)]) == 0
    assert f"{mountpoint} is unmounted" in log.read_text()


def test_the_log_tells_of_mounts_that_end_with_the_service(mountpoint: Path) -> None:
    assert main(["service", "stop"]) == 0
    text = (state_directory() / "service.log").read_text()
    assert f"{mountpoint} is unmounted, because the service ends" in text
