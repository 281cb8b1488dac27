"""A reader over a mount whose processes are killed and upgraded: it waits, and sees right bytes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.linux.process import start_time_ticks
from lamina.serve.mounts import MountState, list_mounts, unmount
from lamina.serve.service.client import service_status, upgrade_service
from tests.support.native_images import build_image, image_files, some_bytes
from tests.support.serving import ROOT, forget_pages, is_mounted, start
from tests.support.tools import require_erofs, require_kernel, require_root
from tests.support.waiting import wait_for_no_mounts

pytestmark = pytest.mark.kernel

FILES = {b"files/%03d" % number: some_bytes(60_000 + number, number) for number in range(400)}
CHUNK_SIZE = 16384
BLOBS = 3
"""A successor that takes one for another fills the wrong one, and shows a hole of the right."""
PAUSE_S = 0.08
"""Between the moments at which processes are killed: several times in the course of a read."""
MOST_TIMES = 20
WAIT_S = 120.0
"""For what takes a moment, on any machine; bench/takeover.py measures how long."""

ROLES = (
    ("worker",),
    ("supervisor",),
    ("holder",),
    ("supervisor", "worker"),
    ("holder", "worker"),
    ("holder", "supervisor"),
)


@pytest.fixture(params=("fanotify", "fuse-blob", "fuse"))
def device(request: pytest.FixtureRequest) -> str:
    require_root()
    require_kernel(6, 9, "FUSE_NOTIFY_RESEND")
    if request.param != "fuse":
        require_erofs()
        require_kernel(6, 14 if request.param == "fanotify" else 12, request.param)
    return str(request.param)


class Taken:
    """A mount of an image that arrives slowly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        image_files(folder / "image", build_image(FILES, chunk_size=CHUNK_SIZE, blob_count=BLOBS))
        (folder / "image" / "far").touch()
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.read_bytes = 0

    def start(self, device: str) -> None:
        start(self.folder / "image", self.mountpoint, self.folder / "store", device)

    def read_all(self) -> float:
        """Compare every byte; return the longest wait between two reads of a program, in seconds.

        One that waits for ever is ended by the time limit of all tests.
        """
        command = ["cat", *(os.fsdecode(name) for name in sorted(FILES))]
        longest, last = 0.0, time.monotonic()
        data = bytearray()
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=self.mountpoint) as reader:
            assert reader.stdout is not None
            while part := os.read(reader.stdout.fileno(), 1 << 16):
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                data += part
                self.read_bytes = len(data)
        assert reader.returncode == 0
        assert data == b"".join(FILES[name] for name in sorted(FILES))
        return longest


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Taken]:
    taken = Taken(tmp_path)
    yield taken
    if is_mounted(taken.mountpoint):
        subprocess.run(["umount", "--lazy", taken.mountpoint], check=True)


class Meanwhile:
    """Does something again and again while a block runs; if told what there is of progress, only
    when there was some since the last time: however slow the machine, what is killed had begun.
    """

    def __init__(
        self, work: Callable[[], object], progress: Callable[[], int] | None = None
    ) -> None:
        self._work = work
        self._progress = progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.times = 0

    def _run(self) -> None:
        seen = -1
        while self.times < MOST_TIMES and not self._stop.wait(PAUSE_S):
            if self._progress is not None:
                if self._progress() == seen:
                    continue
                seen = self._progress()
            self._work()
            self.times += 1

    def __enter__(self) -> Meanwhile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def kill(roles: tuple[str, ...]) -> None:
    status = service_status()
    # No service: the image is resident by now.
    for role in roles if status is not None else ():
        assert status is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(status.pids[role], signal.SIGKILL)


@pytest.mark.parametrize("roles", ROLES, ids="+".join)
def test_killed(
    taken: Taken, device: str, roles: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    taken.start(device)
    with Meanwhile(lambda: kill(roles), lambda: taken.read_bytes) as killing:
        longest = taken.read_all()
        # However late the first one comes.
        while not killing.times:
            longest = taken.read_all()
    with capsys.disabled():
        print(f"\n{device}, {' and '.join(roles)} killed {killing.times} times: {longest:.3f} s")
    assert all(each.state in (MountState.SERVED, MountState.RESIDENT) for each in list_mounts())
    unmount(taken.mountpoint)
    wait_for_no_mounts()


def test_the_holder_is_killed_while_it_replaces_the_supervisor(taken: Taken, device: str) -> None:
    """At every moment another process must have the descriptors."""
    taken.start(device)
    for pause_ms in range(0, 20, 2):
        pids = all_there()
        os.kill(pids["supervisor"], signal.SIGKILL)
        time.sleep(pause_ms / 1000)
        os.kill(pids["holder"], signal.SIGKILL)
    all_there()
    assert [each.state for each in list_mounts()] == [MountState.SERVED]
    taken.read_all()
    unmount(taken.mountpoint)


def test_the_others_are_killed_in_one_stroke(taken: Taken, device: str) -> None:
    """The supervisor hears of both at once, and must not take the new holder for the old one: that
    would begin a second service, and two workers would take each other's requests.
    """
    taken.start(device)
    for _ in range(5):
        pids = all_there()
        os.kill(pids["supervisor"], signal.SIGSTOP)
        for role in ("holder", "worker"):
            os.kill(pids[role], signal.SIGKILL)
        time.sleep(0.05)
        os.kill(pids["supervisor"], signal.SIGCONT)
        assert all_there()["supervisor"] == pids["supervisor"]
        assert supervisors() == [pids["supervisor"]]
    taken.read_all()
    unmount(taken.mountpoint)


def supervisors() -> list[int]:
    """The processes of this test's service that take themselves for its supervisor."""
    runtime = f"LAMINA_RUNTIME={os.environ['LAMINA_RUNTIME']}".encode()
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            environment = (comm.parent / "environ").read_bytes().split(b"\0")
            if comm.read_text() == "lamina-super\n" and runtime in environment:
                found.append(int(comm.parent.name))
    return found


def all_there() -> dict[str, int]:
    """Wait until each role has a living process."""
    deadline = time.monotonic() + WAIT_S
    while True:
        status = service_status()
        if status is not None and all(start_time_ticks(pid) for pid in status.pids.values()):
            return status.pids
        assert time.monotonic() < deadline, f"the service is not whole again: {status}"
        time.sleep(0.02)


def test_upgraded(taken: Taken, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken.start(device)
    before = service_status()
    assert before is not None
    with Meanwhile(upgrade_service, lambda: taken.read_bytes) as upgrading:
        longest = taken.read_all()
    with capsys.disabled():
        print(f"\n{device}, upgraded {upgrading.times} times: {longest:.3f} s")
    after = service_status()
    if after is not None:
        assert not set(before.pids.values()) & set(after.pids.values())
    unmount(taken.mountpoint)


def test_a_client_survives_the_supervisor(taken: Taken, device: str) -> None:
    """Killed while mounts are being made: they are made in the end, or the command says why not."""
    taken.start(device)
    other = taken.folder / "other"
    other.mkdir()
    with Meanwhile(lambda: kill(("supervisor", "worker"))):
        for _ in range(3):
            start(taken.folder / "image", other, taken.folder / "store", device)
            name = os.fsdecode(min(FILES))
            assert (other / name).read_bytes() == FILES[min(FILES)]
            unmount(other, lazy=True)
    taken.read_all()


def test_resident_while_mounted(taken: Taken) -> None:
    """Once all is here, the marks are gone and so is the service."""
    require_root()
    require_erofs()
    require_kernel(6, 14, "fanotify")
    taken.start("fanotify")
    taken.read_all()
    deadline = time.monotonic() + WAIT_S
    while service_status() is not None:
        assert time.monotonic() < deadline, "the service outlives what it is for"
        time.sleep(0.02)
    (status,) = list_mounts()
    assert (status.state, status.pids, status.resident) == (MountState.RESIDENT, {}, True)
    forget_pages(taken.mountpoint)
    taken.read_all()
    unmount(taken.mountpoint)
    wait_for_no_mounts()


def test_the_socket_is_private(taken: Taken) -> None:
    require_root()
    taken.start("fuse")
    code = "from lamina.serve.service.client import connect; connect()"
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode != 0
    unmount(taken.mountpoint)


def test_the_service_is_told_to_end(taken: Taken, device: str) -> None:
    """Who has a file open reads what was read before, then gets errors; never zeros."""
    taken.start(device)
    name = sorted(FILES)[7]
    fd = os.open(taken.mountpoint / os.fsdecode(name), os.O_RDONLY)
    assert os.read(fd, 1000) == FILES[name][:1000]
    status = service_status()
    assert status is not None
    end = os.pidfd_open(status.pids["supervisor"])
    os.kill(status.pids["supervisor"], signal.SIGTERM)
    assert select.select([end], [], [], WAIT_S)[0]
    os.close(end)
    assert not is_mounted(taken.mountpoint)
    seen = b""
    with contextlib.suppress(OSError):
        while part := os.pread(fd, 4096, len(seen)):
            seen += part
    with contextlib.suppress(OSError):
        os.close(fd)
    assert seen == FILES[name][: len(seen)]
    assert len(seen) < len(FILES[name])


def test_the_client_is_killed_when_it_has_mounted(taken: Taken, device: str) -> None:
    """The mount is there and nobody was told of it: it is served or gives errors."""
    program = (
        "import os, runpy\n"
        "from lamina.serve.service import mounting\n"
        "mounting._commit = lambda *_: os.kill(os.getpid(), 9)\n"
        "runpy.run_module('tests.support.serving', run_name='__main__')\n"
    )
    places = (taken.folder / "image", taken.mountpoint, taken.folder / "store", device)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    killed = subprocess.run([sys.executable, "-c", program, *places], env=environment, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    for _ in range(2):
        for name in sorted(FILES)[:40]:
            with contextlib.suppress(OSError):
                assert (taken.mountpoint / os.fsdecode(name)).read_bytes() == FILES[name]
        time.sleep(1.5)
