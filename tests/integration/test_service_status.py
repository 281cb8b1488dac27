"""A mount service that tells of more mounts than one packet holds."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lamina.serve.service.client import connect, service_status
from tests.support.serving import ROOT

SERVICE = """\
import sys
from lamina.serve.service import start, worker

FOLDER = "/var/lib/containers/storage/overlay/some-image-of-a-tenant/{:08d}/root"
KNOWN = {"ready_bytes": 123456789, "total_bytes": 234567890, "resident": False}

def status(self, body):
    wanted = body.get("mountpoints")
    names = [FOLDER.format(number) for number in range(2000)]
    mounts = {name: KNOWN for name in names if wanted is None or name in wanted}
    self._channel.say("status", number=body["number"], mounts=mounts)

worker.Worker._status = status
start.main(["--background", sys.argv[1]])
"""
"""The mount service, whose worker takes itself for one of 2 000 mounts."""


@pytest.fixture
def service() -> Iterator[None]:
    read_end, write_end = os.pipe()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-c", SERVICE, str(write_end)]
    subprocess.run(command, pass_fds=(write_end,), env=environment, check=True, cwd=ROOT)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == b"ready"
    # Without a mount it ends with its last client.
    client = connect()
    assert client is not None
    yield
    status = service_status()
    client.close()
    assert status is not None
    end = os.pidfd_open(status["pids"]["supervisor"])
    signal.pidfd_send_signal(end, signal.SIGTERM)
    assert select.select([end], [], [], 60)[0]
    os.close(end)


@pytest.mark.usefixtures("service")
def test_the_status_of_2000_mounts() -> None:
    first = service_status()
    assert first is not None
    assert len(first["mounts"]) == 2000
    # And it goes on to answer, by the same processes.
    second = service_status()
    assert second is not None
    assert (second["mounts"], second["pids"]) == (first["mounts"], first["pids"])
    name = min(first["mounts"])
    one = service_status([name])
    assert one is not None
    assert list(one["mounts"]) == [name]
