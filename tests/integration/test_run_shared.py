"""Containers of one image have its pages once, by the service, and end as containers do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import write_layout
from lamina.errors import KernelError
from lamina.serve.mounts import list_mounts
from lamina.serve.runtime_folder import state_directory
from lamina.serve.service.client import service_status
from tests.integration.test_shared_pages import locked_pages, resident_pages
from tests.support.containers import small_root
from tests.support.serving import kill_together
from tests.support.tools import require_kernel, require_root, require_tool
from tests.support.waiting import wait_for_no_mounts, wait_until

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]
PREFIX = f"shared-{os.getpid()}-"
BALLAST = hashlib.shake_128(b"shared").digest(4 << 20)
PAGES = len(BALLAST) // mmap.PAGESIZE
DIGEST = hashlib.sha256(BALLAST).hexdigest()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A native image in a folder: busybox, a large file, and one that keeps it incomplete."""
    require_root()
    require_tool("runc")
    folder = tmp_path_factory.mktemp("image")
    root = small_root(folder / "root")
    (root / "ballast").write_bytes(BALLAST)
    (root / "rest").write_bytes(hashlib.shake_128(b"rest").digest(2 << 20))
    with tarfile.open(folder / "layer.tar", "w") as archive:
        archive.add(root, ".")
    config = {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo from the image"]}
    write_layout(folder / "layout", "small", (folder / "layer.tar").read_bytes(), config)
    subprocess.run(
        [*PROGRAM, "-q", "convert", f"oci:{folder}/layout:small", f"oci:{folder}/native:small"],
        env=environment(),
        check=True,
    )
    return f"oci:{folder}/native:small"


PROGRAM = (sys.executable, "-m", "lamina")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture(params=("fuse-blob", "fanotify", "fuse"))
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "fanotify":
        require_kernel(6, 14, "fanotify pre-content events")
    if request.param == "fuse-blob":
        require_kernel(6, 12, "file-backed EROFS")
    return str(request.param)


class Container:
    """One that runs until it is told to end by a line."""

    def __init__(self, image: str, device: str, store: Path, script: str, *more: str) -> None:
        self.name = f"{PREFIX}{secrets.token_hex(4)}"
        words = ["run", "--rm", "-i", "--store", str(store), "--device", device]
        command = [*PROGRAM, *words, *more, "--name", self.name, image, script]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )

    @property
    def tree(self) -> Path:
        """Where its image is mounted."""
        return state_directory() / "containers" / self.name / "image"

    @property
    def beside(self) -> int:
        """The process that stays beside it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in map(int, children.split()):
            if b"lamina" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2:3]:
                return pid
        raise AssertionError(children)

    @property
    def inside(self) -> int:
        """Its first process."""
        state = ["runc", "--root", state_directory() / "runtime", "state", self.name]
        return int(json.loads(subprocess.run(state, capture_output=True, check=True).stdout)["pid"])

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


ONE_DEVICE = pytest.mark.parametrize("device", ["fuse-blob"], indirect=True)
Start = Callable[..., Container]
READY = "echo ready; read line; true"
READS = "sha256sum < /ballast | cut -c1-64; read line; true"


@pytest.fixture
def start(native: str, device: str, tmp_path: Path) -> Iterator[Start]:
    containers: list[Container] = []

    def call(script: str, *options: str) -> Container:
        containers.append(Container(native, device, tmp_path / "store", script, *options))
        return containers[-1]

    yield call
    for container in containers:
        container.end()
        if container.tree.parent.exists():
            root = state_directory() / "runtime"
            remove = ["runc", "--root", root, "delete", "-f", container.name]
            subprocess.run(remove, check=False)
            shutil.rmtree(container.tree.parent)
    wait_for_no_mounts()


def test_what_one_has_read_is_there_for_the_other(start: Start) -> None:
    first, second = start(READS), start(READY)
    assert (first.line(), second.line()) == (DIGEST, "ready")
    assert first.tree.stat().st_dev == second.tree.stat().st_dev
    with locked_pages(first.tree / "ballast"):
        assert resident_pages(second.tree / "ballast") == PAGES
    third = start(READS)
    assert third.line() == DIGEST
    assert len({each.record.device_number for each in list_mounts()}) == 1
    assert resident_pages(third.tree / "rest") == 0


def test_the_first_may_end_and_the_others_stay(start: Start) -> None:
    """And nothing of it stays in use, as by what another one has copied of its mounts."""
    first = start(READY)
    assert first.line() == "ready"
    second = start(f"{READY}; {READS}")
    assert second.line() == "ready"
    assert first.end() == 0
    wait_until(lambda: [each.record.mountpoint for each in list_mounts()] == [str(second.tree)])
    second.go_on()
    assert second.line() == DIGEST
    (left,) = list_mounts()
    assert left.record.device_number == f"0:{second.tree.stat().st_dev & 0xFF}"


def is_served() -> bool:
    with contextlib.suppress(KernelError):
        return len(list_mounts()) == 1
    return False


def test_it_goes_on_when_processes_of_the_service_are_killed(start: Start) -> None:
    container = start(f"{READY}; {READS}")
    assert container.line() == "ready"
    for roles in (("worker",), ("supervisor",), ("supervisor", "holder"), ("worker", "holder")):
        status = service_status()
        assert status is not None
        kill_together(status.pids[role] for role in roles)
        wait_until(is_served)
    container.go_on()
    assert container.line() == DIGEST
    assert container.end() == 0


@ONE_DEVICE
def test_nothing_is_left_of_one_that_is_killed(start: Start, tmp_path: Path) -> None:
    container = start(READY)
    assert container.line() == "ready"
    inside = container.inside
    container.process.send_signal(signal.SIGKILL)
    wait_for_no_mounts()
    wait_until(lambda: not Path(f"/proc/{inside}").exists())
    wait_until(lambda: not container.tree.parent.exists())
    wait_until(lambda: not (tmp_path / "store/containers").exists())


@ONE_DEVICE
def test_the_process_beside_it_may_be_killed(start: Start) -> None:
    """Then the service unmounts; what the container reads is served as long as it does."""
    container = start(f"{READY}; {READS}")
    assert container.line() == "ready"
    os.kill(container.beside, signal.SIGKILL)
    wait_until(lambda: not container.tree.is_mount())
    container.go_on()
    assert container.line() == DIGEST
    assert container.end() == 0
    assert not container.tree.parent.exists()


@ONE_DEVICE
def test_both_may_be_killed(start: Start) -> None:
    first, second = start(READY), start(READY)
    assert (first.line(), second.line()) == ("ready", "ready")
    kill_together([first.beside, first.process.pid])
    wait_until(lambda: [each.record.mountpoint for each in list_mounts()] == [str(second.tree)])


@ONE_DEVICE
def test_a_container_serves_itself_where_no_service_can_run(
    native: str, device: str, tmp_path: Path
) -> None:
    """As beside one of another version."""
    program = (
        "import sys\n"
        "from unittest import mock\n"
        "from lamina.cli import main\n"
        "from lamina.errors import KernelError\n"
        "from lamina.serve import run\n"
        "with mock.patch.object(run, 'connect_or_start', side_effect=KernelError('none here')):\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["run", "--rm", "--store", str(tmp_path / "store"), "--device", device, native]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, READS.partition(";")[0]],
        capture_output=True,
        text=True,
        env=environment(),
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, DIGEST, "")
    assert service_status() is None


@ONE_DEVICE
def test_a_container_keeps_no_other_mount_in_use(
    native: str, device: str, start: Start, tmp_path: Path
) -> None:
    """What came into its private mounts is in use there, but for what its volumes are of."""
    folders = [tmp_path / name for name in ("volume", "other")]
    for folder in folders:
        folder.mkdir()
        mount = ["-q", "mount", "--store", str(tmp_path / "store"), "--device", device]
        subprocess.run([*PROGRAM, *mount, native, str(folder)], env=environment(), check=True)
    container = start(
        f"{READY}; sha256sum < /volume/ballast | cut -c1-64", f"-v{folders[0]}:/volume"
    )
    assert container.line() == "ready"
    for folder in reversed(folders):
        subprocess.run([*PROGRAM, "umount", str(folder)], env=environment(), check=True)
        left = {each.record.mountpoint for each in list_mounts()}
        assert str(folders[1]) not in left
    container.go_on()
    assert container.line() == DIGEST
