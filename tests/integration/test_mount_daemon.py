"""Mounts that outlive their command: readiness, records, their end, and what serves them killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lamina.content.lazy_image import LazyImage
from lamina.errors import NotFoundError
from lamina.linux.process import start_time_ticks
from lamina.linux.syscalls import SyscallError
from lamina.serve import mount_job, mounts
from lamina.serve.mount_records import MountRecords
from lamina.serve.mounts import MountState, list_mounts, unmount
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service import mounting
from lamina.serve.service.client import service_status
from lamina.store.holds import held_blobs
from tests.support.native_images import BuiltImage, open_bootstrap
from tests.support.serving import (
    ROOT,
    FolderSource,
    forget_pages,
    is_mounted,
    kill_together,
    sample_spec,
    start,
    write_sample,
)
from tests.support.tools import require_erofs, require_kernel, require_root, require_tool
from tests.support.waiting import wait_until

pytestmark = pytest.mark.kernel

DEVICES = ("fanotify", "fuse-blob", "fuse")
BIG = "sizes/700000"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    require_root()
    if request.param != "fuse":
        require_erofs()
        require_kernel(6, 14 if request.param == "fanotify" else 12, request.param)
    return str(request.param)


class Served:
    """A sample image that a daemon serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "image"
        self.built: BuiltImage = write_sample(self.folder)
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.store = folder / "store"

    def start(self, device: str, *, foreground: bool = False) -> int:
        """Mount, and return the process id of the supervisor, or of the server."""
        record = start(self.folder, self.mountpoint, self.store, device, foreground=foreground)
        assert (record["device"], record["mountpoint"]) == (device, str(self.mountpoint))
        return int(str(record["pid"]))

    def states(self) -> list[MountState]:
        mine = str(self.mountpoint)
        return [status.state for status in list_mounts() if status.record.mountpoint == mine]

    def pids(self) -> dict[str, int]:
        mine = str(self.mountpoint)
        return next(each.pids for each in list_mounts() if each.record.mountpoint == mine)

    def open(self) -> LazyImage:
        source = FolderSource(self.folder)
        return open_bootstrap(self.folder / "image.boot", source, store=self.store)

    def log(self) -> str:
        return (state_directory() / "service.log").read_text()

    def content(self, name: str) -> bytes:
        return self.built.contents[name.encode()]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    while is_mounted(served.mountpoint):
        subprocess.run(["umount", "-l", served.mountpoint], check=True)


def gone(pid: int) -> bool:
    return start_time_ticks(pid) is None


def test_mount_list_and_unmount(served: Served, device: str) -> None:
    pid = served.start(device)
    assert served.states() == [MountState.SERVED]
    assert (served.mountpoint / BIG).read_bytes() == served.content(BIG)
    record = unmount(served.mountpoint)
    assert record.pid == pid
    assert not is_mounted(served.mountpoint)
    wait_until(lambda: gone(pid))
    assert served.states() == []
    with pytest.raises(NotFoundError):
        unmount(served.mountpoint)


def test_a_second_mount_is_refused(served: Served) -> None:
    require_root()
    served.start("fuse")
    with pytest.raises(RuntimeError, match=r"mounted at .* already"):
        served.start("fuse")
    unmount(served.mountpoint)


def test_an_error_of_the_server_reaches_the_caller(served: Served, device: str) -> None:
    (served.folder / "image.boot").write_bytes(b"\0" * 8192)
    with pytest.raises(RuntimeError, match="FormatError"):
        served.start(device)
    assert served.states() == []
    assert not is_mounted(served.mountpoint)


def test_an_interrupt_before_a_mount_is_recorded_is_undone(
    served: Served, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here for a moment the mount has its place, and nobody knows of it."""
    seen: list[bool] = []

    def interrupted(*_: object) -> None:
        seen.append(is_mounted(served.mountpoint))
        raise KeyboardInterrupt

    if device == "fuse":
        monkeypatch.setattr(mounting, "_commit", interrupted)
    else:
        monkeypatch.setattr(mount_job, "shorten_readahead", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mounting.mount_by_service(
            sample_spec(served.folder, served.mountpoint, served.store, device)
        )
    assert seen == [True]
    assert not is_mounted(served.mountpoint)
    assert served.states() == []


def test_an_image_that_nobody_waits_for_any_more_is_closed(
    served: Served, device: str, tmp_path: Path
) -> None:
    """Else it would be held for as long as the service lives."""
    served.start(device)
    (tmp_path / "other").mkdir()
    other = Served(tmp_path / "other")
    (other.folder / "wait").touch()
    arguments = (other.folder, other.mountpoint, other.store, device)
    command = [sys.executable, "-m", "tests.support.serving", *map(str, arguments)]
    client = subprocess.Popen(command, cwd=ROOT)
    wait_until((other.folder / "waiting").exists)
    client.kill()
    client.wait()
    (other.folder / "wait").unlink()
    other.start(device)
    unmount(other.mountpoint)
    files = Path(f"/proc/{served.pids()['worker']}/fd")

    def is_open() -> bool:
        links = [os.readlink(path) for path in files.iterdir() if path.is_symlink()]
        return any(link.startswith(str(other.store)) for link in links)

    wait_until(lambda: not is_open())
    unmount(served.mountpoint)


def test_busy_and_lazy(served: Served, device: str) -> None:
    pid = served.start(device)
    with (served.mountpoint / BIG).open("rb") as file:
        with pytest.raises(SyscallError) as caught:
            unmount(served.mountpoint)
        assert caught.value.code == errno.EBUSY
        assert served.states() == [MountState.SERVED]
        unmount(served.mountpoint, lazy=True)
        assert not is_mounted(served.mountpoint)
        assert served.states() == [MountState.DETACHED]
        assert file.read() == served.content(BIG), "a lazy unmount ended the serving"
    wait_until(lambda: gone(pid))
    assert served.states() == []


def test_other_programs_may_unmount(served: Served, device: str) -> None:
    pid = served.start(device)
    subprocess.run(["umount", served.mountpoint], check=True)
    wait_until(lambda: gone(pid))
    assert served.states() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(served: Served, device: str, number: signal.Signals) -> None:
    pid = served.start(device)
    os.kill(pid, number)
    wait_until(lambda: gone(pid))
    assert not is_mounted(served.mountpoint)
    assert served.states() == []


def test_damage_is_in_the_log(served: Served, device: str) -> None:
    blob = served.folder / "blobs" / served.built.blob_id
    data = bytearray(blob.read_bytes())
    offset, size = served.built.pieces[0]
    data[offset + size // 2] ^= 1
    blob.write_bytes(data)
    served.start(device)
    failed = 0
    for path in (served.mountpoint / "sizes").iterdir():
        try:
            assert path.read_bytes() == served.content(f"sizes/{path.name}")
        except OSError as error:
            assert error.errno == errno.EIO
            failed += 1
    assert failed
    log = served.log()
    assert served.built.blob_id in log and "chunk 0" in log and "digest" in log
    unmount(served.mountpoint)


def read_what_is_held(served: Served) -> subprocess.Popen[bytes]:
    """A reader that is waiting for the source when this returns."""
    (served.folder / "held").touch()
    program = (
        "import os, sys\n"
        "try: data = open(sys.argv[1], 'rb').read(); print(data.count(0), len(data))\n"
        "except OSError as error: print(-error.errno, 0)"
    )
    command = [sys.executable, "-c", program, served.mountpoint / BIG]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE)
    wait_until((served.folder / "asked").exists)
    return reader


def test_killed_server_never_means_zeros(served: Served, device: str) -> None:
    pid = served.start(device, foreground=True)
    with read_what_is_held(served) as reader:
        os.kill(pid, signal.SIGKILL)
        out, _ = reader.communicate(timeout=60)
    code, length = map(int, out.split())
    assert length == 0, f"the reader got {length} bytes, {code} of them zero"
    assert -code in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
    # Reads that come later get an error too.
    for name in ("many/file-200", "many/file-250"):
        with pytest.raises(OSError) as caught:
            (served.mountpoint / name).read_bytes()
        assert caught.value.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
    wait_until(lambda: served.states() == [MountState.BROKEN])
    unmount(served.mountpoint)
    assert not is_mounted(served.mountpoint)
    assert served.states() == []
    wait_until(lambda: not holders())


def test_a_complete_image_needs_no_process(served: Served, device: str) -> None:
    """The kernel reads it by itself, so nothing may be evicted from it."""
    if device == "fuse":
        pytest.skip("device fuse reads the cache files itself")
    with served.open() as image:
        for blob in image.blobs:
            blob.ensure(0, blob.size_bytes)
    served.start(device)
    assert served.states() == [MountState.RESIDENT]
    wait_until(lambda: service_status() is None)
    forget_pages(served.mountpoint)
    assert held_blobs(served.store)
    assert (served.mountpoint / BIG).read_bytes() == served.content(BIG)
    unmount(served.mountpoint)
    wait_until(lambda: not held_blobs(served.store))


def holders() -> list[int]:
    """Processes that hold a fanotify group for a dead server of this test run."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = comm.read_text().strip()
            environment = (comm.parent / "environ").read_bytes()
        except OSError:
            continue
        if name == "lamina-guard" and os.environ["LAMINA_TEST_RUN"].encode() in environment:
            found.append(int(comm.parent.name))
    return found


def test_broken_mount_is_mended_by_mounting_again(served: Served, device: str) -> None:
    served.start(device)
    kill_together(served.pids().values())
    wait_until(lambda: served.states() == [MountState.BROKEN])
    served.start(device)
    assert served.states() == [MountState.SERVED]
    assert (served.mountpoint / BIG).read_bytes() == served.content(BIG)
    unmount(served.mountpoint)


def test_copy_in_another_mount_namespace_stays_served(served: Served, device: str) -> None:
    pid = served.start(device)
    script = "echo ready; read line; exec cat -- "
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    command += [script + str(served.mountpoint / BIG)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        subprocess.run(["umount", served.mountpoint], check=True)
        time.sleep(0.5)
        assert not gone(pid)
        out, _ = other.communicate(b"go\n", timeout=60)
        assert out == served.content(BIG)
    wait_until(lambda: gone(pid))


AS_NOBODY = """\
import json, sys
from pathlib import Path
from lamina.serve.mounts import list_mounts, unmount
from tests.support.serving import is_mounted, start

base, name = Path(sys.argv[1]), sys.argv[2]
record = start(base / "image", base / "mnt", base / "store", "auto")
states = [status.state for status in list_mounts()]
total = sum((base / "mnt" / name).read_bytes())
unmount(base / "mnt")
print(json.dumps([record["device"], states, total, is_mounted(base / "mnt")]))
"""


def test_mount_without_root(served: Served) -> None:
    """As user nobody, in a mount namespace where /dev/fuse is for everyone, as on most machines."""
    require_root()
    require_tool("fusermount3", "setpriv", "unshare")
    base = Path(tempfile.mkdtemp(prefix="lamina-unprivileged-", dir="/tmp"))
    shutil.copytree(served.folder, base / "image")
    for name in ("mnt", "run", "dev"):
        (base / name).mkdir(mode=0o700)
    subprocess.run(["chown", "-R", "65534:65534", base], check=True)
    prepare = (
        f"mount -t tmpfs tmpfs {base}/dev && mknod -m 666 {base}/dev/fuse c 10 229"
        f" && mount --bind {base}/dev/fuse /dev/fuse && exec "
    )
    # The interpreter may be in root's home, so this nobody can read everything.
    nobody = (
        "setpriv --reuid=65534 --regid=65534 --clear-groups"
        " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    command += [f'{prepare}{nobody} "$@"', "sh", sys.executable, "-c", AS_NOBODY, str(base), BIG]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "HOME": str(base)}
    environment["LAMINA_RUNTIME"] = str(base / "run")
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        expected = ["fuse", ["served"], sum(served.content(BIG)), False]
        assert json.loads(done.stdout) == expected
    finally:
        shutil.rmtree(base)


def test_a_mount_that_becomes_resident_while_it_is_unmounted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is replaced by another one at any moment."""
    served.start("fuse")
    real = mounts.list_mounts

    def replaced(mountpoint: str | None = None) -> list[mounts.MountStatus]:
        records = MountRecords()
        record = records.read(str(served.mountpoint))
        assert record is not None
        records.write(msgspec.structs.replace(record, resident=True, service=False))
        return real(mountpoint)

    monkeypatch.setattr(mounts, "list_mounts", replaced)
    unmount(served.mountpoint)
    assert not is_mounted(served.mountpoint)
    assert real() == []
    wait_until(lambda: service_status() is None)
