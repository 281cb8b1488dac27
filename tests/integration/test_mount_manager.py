"""The mount service below a service manager, which keeps its descriptors."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.serve.mounts import MountState, list_mounts, unmount
from lamina.serve.service.client import service_status
from tests.support.serving import ROOT, kill_together, start, write_sample
from tests.support.tools import require_erofs, require_kernel, require_root
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kernel

BIG = "sizes/700000"


class Manager:
    """As much of systemd as the service needs: a notify socket and a store."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.ready = threading.Event()
        self.store: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._services: list[subprocess.Popen[bytes]] = []

    def _run(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
            if data == b"end":
                return
            words = dict(line.split("=", 1) for line in data.decode().splitlines())
            if words.get("READY") == "1":
                self.ready.set()
            elif "FDSTORE" in words:
                self.store[words["FDNAME"]] = fds[0]
            elif "FDSTOREREMOVE" in words and words["FDNAME"] in self.store:
                # As for systemd, a name that is not there is nothing to remove.
                os.close(self.store.pop(words["FDNAME"]))

    def start(self) -> None:
        """Start the service with what is stored."""
        self.ready.clear()
        names, fds = list(self.store), list(self.store.values())

        def place() -> None:
            high = [os.dup2(fd, 500 + number) for number, fd in enumerate(fds)]
            for number, fd in enumerate(high):
                os.dup2(fd, 3 + number)

        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "NOTIFY_SOCKET": self.address,
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": ":".join(names),
        }
        program = f"LISTEN_PID=$$ exec {sys.executable} -m tests.support.service"
        service = subprocess.Popen(
            ["sh", "-c", program], env=environment, cwd=ROOT, preexec_fn=place, close_fds=False
        )
        self._services.append(service)
        assert self.ready.wait(60)

    def close(self) -> None:
        for service in self._services:
            service.kill()
            service.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.connect(self.address)
            end.send(b"end")
        self._thread.join()
        self._socket.close()
        for fd in self.store.values():
            os.close(fd)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    require_root()
    manager = Manager(tmp_path)
    yield manager
    if status := service_status():
        kill_together(status.pids.values())
    manager.close()


@pytest.mark.parametrize("device", ["fanotify", "fuse-blob", "fuse"])
def test_mounts_survive_the_death_of_all(manager: Manager, device: str, tmp_path: Path) -> None:
    if device != "fuse":
        require_erofs()
    require_kernel(6, 14, device)
    built = write_sample(tmp_path / "image")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    manager.start()
    start(tmp_path / "image", mountpoint, tmp_path / "store", device)
    assert manager.store
    # Before: who asks for it waits for the chunk table as well.
    status = service_status()
    assert status is not None
    (tmp_path / "image" / "held").touch()
    with subprocess.Popen(["cat", mountpoint / BIG], stdout=subprocess.PIPE) as reader:
        wait_until((tmp_path / "image" / "asked").exists)
        kill_together(status.pids.values())
        (tmp_path / "image" / "held").unlink()
        time.sleep(0.3)
        assert reader.poll() is None, "the reader did not wait"
        manager.start()
        out, _ = reader.communicate(timeout=60)
    assert out == built.contents[BIG.encode()]
    assert [each.state for each in list_mounts()] == [MountState.SERVED]
    unmount(mountpoint)
    wait_until(lambda: not manager.store)


def test_a_service_of_a_manager_is_stopped_there(
    manager: Manager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.start()
    assert main(["service", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["managed"] is True
    assert main(["service", "stop"]) == 2
    assert "systemctl stop" in capsys.readouterr().err
    assert service_status() is not None, "it goes on"
