"""``lamina mount``, ``mounts`` and ``umount`` as a user types them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout, write_layout
from lamina.linux.process import start_time_ticks
from tests.support.shell import Shell
from tests.support.static_program import euid_program
from tests.support.tools import require_kernel, require_root

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
IMAGE = "oci:native:tiny"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    require_root()
    folder = tmp_path_factory.mktemp("mounts")
    files.update(tiny_layout(folder / "source"))
    Shell(folder)("convert", "oci:source:tiny", IMAGE)
    return folder


@pytest.fixture
def lamina(folder: Path) -> Iterator[Shell]:
    shell = Shell(folder)
    (folder / "mnt").mkdir(exist_ok=True)
    yield shell
    shell.unmount_all()
    assert shell.mine() == []


@pytest.mark.parametrize("device", ["auto", "fuse"])
def test_mount_look_unmount(lamina: Shell, files: dict[str, bytes], device: str) -> None:
    done = lamina("mount", "--json", "--device", device, IMAGE, "mnt")
    record = json.loads(done.stdout)
    mountpoint = lamina.folder / "mnt"
    assert record["mountpoint"] == str(mountpoint)
    assert record["image"].startswith(f"oci:{lamina.folder}/native:tiny@sha256:")
    assert record["digest"] in record["image"]
    assert record["store"] == str(lamina.folder / "store")
    for name, data in files.items():
        assert (mountpoint / name).read_bytes() == data
    (listed,) = lamina.mine()
    assert {name: listed[name] for name in record} == record
    assert listed["state"] == "served"
    assert set(listed["pids"]) == {"holder", "supervisor", "worker"}
    assert all(start_time_ticks(pid) is not None for pid in listed["pids"].values())
    assert 0 < listed["ready_bytes"] <= listed["total_bytes"]
    assert str(mountpoint) in lamina("mounts").stdout
    assert str(mountpoint) in lamina("mounts", "--mountpoints").stdout.splitlines()
    done = lamina("umount", "--json", "mnt")
    assert json.loads(done.stdout) == {"image": record["image"], "mountpoint": str(mountpoint)}
    assert not os.path.ismount(mountpoint)
    deadline = time.monotonic() + 60
    while any(start_time_ticks(pid) is not None for pid in listed["pids"].values()):
        assert time.monotonic() < deadline, "the service outlives its last mount"
        time.sleep(0.01)


@pytest.mark.parametrize("device", ["auto", "fuse"])
def test_the_rest_arrives_while_nobody_reads(lamina: Shell, device: str) -> None:
    lamina("mount", "--complete", "--device", device, "--store", f"other-{device}", IMAGE, "mnt")
    deadline = time.monotonic() + 60
    # It may have arrived even before the mount was made.
    while not (line := lamina.mine()[0])["resident"] and line["ready_bytes"] != line["total_bytes"]:
        assert time.monotonic() < deadline, line
        time.sleep(0.05)
    lamina("umount", "mnt")


def test_it_tells_people_on_standard_error(lamina: Shell) -> None:
    done = lamina("mount", IMAGE, "mnt")
    assert done.stdout == ""
    assert done.stderr.startswith("lamina: oci:")
    assert "is mounted on" in done.stderr
    done = lamina("-q", "umount", "mnt")
    assert (done.stdout, done.stderr) == ("", "")


def kernel_options(lamina: Shell) -> set[str]:
    """What the kernel has for the mount, and ``mounts --json`` as well."""
    (listed,) = lamina.mine()
    line = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {lamina.folder}/mnt " in line
    )  # fmt: skip
    assert line.split()[5].split(",") == listed["options"]
    return set(listed["options"]) - {"relatime"}


DEVICES = ("fanotify", "fuse-blob", "fuse")


@pytest.fixture(params=[(device, foreground) for device in DEVICES for foreground in (False, True)],
                ids=lambda each: f"{each[0]}-{'foreground' if each[1] else 'service'}")  # fmt: skip
def mounted(lamina: Shell, request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """Mounts an image with a set-uid program, by each device and way of serving."""
    device, foreground = request.param
    if device == "fanotify":
        require_kernel(6, 14, "fanotify pre-content events")
    if device == "fuse-blob":
        require_kernel(6, 12, "file-backed EROFS")
    if not (lamina.folder / "suid").exists():
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            data = euid_program()
            info = tarfile.TarInfo("whoami")
            info.mode, info.size = 0o4755, len(data)
            archive.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("null")
            info.type, info.mode, info.devmajor, info.devminor = tarfile.CHRTYPE, 0o666, 1, 3
            archive.addfile(info)
        write_layout(lamina.folder / "plain", "suid", layer.getvalue(), {})
        lamina("convert", "oci:plain:suid", "oci:suid:suid")
    mounted = Mounted(lamina, device, foreground)
    yield mounted
    mounted.unmount()


class Mounted:
    """An image with a set-uid program on ``mnt``."""

    def __init__(self, lamina: Shell, device: str, foreground: bool) -> None:
        self.lamina = lamina
        self._words = ["--device", device, "oci:suid:suid", "mnt"]
        self._foreground = foreground
        self._server: subprocess.Popen[str] | None = None

    def mount(self, *options: str) -> set[str]:
        """Mount with options, and return those that it has then."""
        self.unmount()
        if self._foreground:
            words = self.lamina.words("mount", "--foreground", "--json", *options, *self._words)
            self._server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True,
                cwd=self.lamina.folder, env=self.lamina.environment)  # fmt: skip
            assert self._server.stdout is not None
            assert self._server.stdout.readline()
        else:
            self.lamina("mount", *options, *self._words)
        return kernel_options(self.lamina)

    def unmount(self) -> None:
        if self.lamina.mine():
            self.lamina("umount", "mnt")
        if self._server is not None:
            self._server.communicate(timeout=60)
            self._server = None

    def effective_user(self) -> int:
        """Who the program runs as for the user 77; -1 if it does not run."""
        # In the folder already, since others may not walk through the ones above it.
        folder = self.lamina.folder / "mnt"
        try:
            done = subprocess.run(["./whoami"], cwd=folder, user=77, group=77, extra_groups=[])
        except PermissionError:
            return -1
        return done.returncode


def test_set_uid_programs_are_nobodys_but_on_request(mounted: Mounted) -> None:
    assert mounted.mount() == {"ro", "nosuid", "nodev"}
    assert mounted.effective_user() == 77
    with pytest.raises(PermissionError):
        (mounted.lamina.folder / "mnt/null").read_bytes()
    assert mounted.mount("-o", "noexec") == {"ro", "nosuid", "nodev", "noexec"}
    assert mounted.effective_user() == -1
    assert mounted.mount("-o", "suid", "-o", "dev,noatime") == {"ro", "noatime"}
    assert mounted.effective_user() == 0
    assert (mounted.lamina.folder / "mnt/null").read_bytes() == b""


def test_options_outlive_who_serves_and_follow_a_remount(lamina: Shell) -> None:
    lamina("mount", "--device", "fuse", IMAGE, "mnt")
    (before,) = lamina.mine()
    os.kill(before["pids"]["worker"], signal.SIGKILL)
    assert kernel_options(lamina) == {"ro", "nosuid", "nodev"}
    subprocess.run(["mount", "-o", "remount,bind,ro,nosuid,dev", lamina.folder / "mnt"], check=True)
    assert kernel_options(lamina) == {"ro", "nosuid"}
    # A broken mount is mounted anew with the options of the new request.
    (now,) = lamina.mine()
    for pid in now["pids"].values():
        os.kill(pid, signal.SIGSTOP)
    for pid in now["pids"].values():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while lamina.mine()[0]["state"] != "broken":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lamina("mount", "--device", "fuse", "-o", "noexec", IMAGE, "mnt")
    assert kernel_options(lamina) == {"ro", "nosuid", "nodev", "noexec"}
    lamina("umount", "mnt")


def test_options_that_are_not_known(lamina: Shell) -> None:
    assert "sticky" in lamina("mount", "-o", "nosuid,sticky", IMAGE, "mnt", code=2).stderr
    assert "read-only" in lamina("mount", "-o", "rw", IMAGE, "mnt", code=2).stderr


def test_a_second_mount_is_refused(lamina: Shell) -> None:
    lamina("mount", IMAGE, "mnt")
    done = lamina("mount", IMAGE, "mnt", code=2)
    assert "mounted at" in done.stderr
    assert "hint: lamina umount" in done.stderr
    lamina("umount", "mnt")


def test_one_of_several_that_mount_at_once_is_taken(lamina: Shell) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            lamina.words("mount", "-q", IMAGE, "mnt"),
            cwd=lamina.folder,
            env=lamina.environment,
            stderr=subprocess.DEVNULL,
        )

    assert sorted(process.wait(60) for process in [start() for _ in range(3)]) == [0, 2, 2]
    lamina("umount", "mnt")
    assert f" {lamina.folder}/mnt " not in Path("/proc/self/mountinfo").read_text()


def test_a_busy_mount(lamina: Shell) -> None:
    lamina("mount", IMAGE, "mnt")
    with (lamina.folder / "mnt/big").open("rb") as file:
        file.read(1)
        done = lamina("umount", "mnt", code=8)
        assert "EBUSY" in done.stderr
        assert "hint: " in done.stderr
        lamina("umount", "--lazy", "mnt")
        assert not os.path.ismount(lamina.folder / "mnt")
        file.seek(0)
        assert len(file.read()) == 640_000


def test_several_at_once(lamina: Shell) -> None:
    for name in ("one", "two"):
        (lamina.folder / name).mkdir()
        lamina("mount", IMAGE, name)
    assert len(lamina.mine()) == 2
    done = lamina("umount", "one", "two")
    assert done.stderr.count("unmounted") == 2
    assert lamina.mine() == []


@pytest.mark.parametrize("arguments", [[], ["--all", "mnt"]])
def test_umount_wants_to_know_what(lamina: Shell, arguments: list[str]) -> None:
    assert "--all" in lamina("umount", *arguments, code=2).stderr


def test_nothing_is_mounted_where_it_fails(lamina: Shell) -> None:
    assert "absent" in lamina("mount", IMAGE, "absent", code=7).stderr
    assert "'none'" in lamina("mount", "oci:native:none", "mnt", code=7).stderr
    assert "no image is mounted" in lamina("umount", "mnt", code=7).stderr
    assert not os.path.ismount(lamina.folder / "mnt")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_foreground(lamina: Shell, number: signal.Signals) -> None:
    command = lamina.words("mount", "--foreground", "--json", IMAGE, "mnt")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=lamina.folder, env=lamina.environment
    ) as process:
        assert process.stdout is not None
        record = json.loads(process.stdout.readline())
        assert record["pid"] == process.pid
        assert (lamina.folder / "mnt/etc/hello").read_bytes().startswith(b"lamina")
        process.send_signal(number)
        assert process.wait(60) == 0
    assert not os.path.ismount(lamina.folder / "mnt")


def test_the_server_outlives_the_terminal(lamina: Shell, files: dict[str, bytes]) -> None:
    """A server is in no process group or session of the shell that called ``lamina mount``."""
    lamina("mount", "--device", "fuse", IMAGE, "mnt")
    (record,) = lamina.mine()
    assert os.getsid(record["pid"]) != os.getsid(0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(record["pid"], signal.SIGWINCH)
    assert (lamina.folder / "mnt/big").read_bytes() == files["big"]
    lamina("umount", "mnt")
