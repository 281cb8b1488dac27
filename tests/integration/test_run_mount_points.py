"""What an image puts where its container is mounted on: followed inside the tree, or refused before
the runtime starts, and the host's folders stay as they are.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lamina.linux.mount_table import parse_mount_table
from lamina.serve.container_folders import create_folders
from tests.support.containers import bundles, small_root
from tests.support.tools import require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]
PREFIX = f"points-{os.getpid()}-"

WATCHING_RUNTIME = """#!/bin/sh
# Instead of running a container: tells that it was asked to, and what it would see.
while [ $# -gt 0 ]; do
    case "$1" in --bundle) bundle="$2" ;; delete) exit 0 ;; esac
    shift
done
cp "$bundle/config.json" /proc/self/mountinfo "$(dirname "$0")"
(cd "$bundle/rootfs" && find . -xdev) > "$(dirname "$0")/found"
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


class Case(NamedTuple):
    """An image that a test may change, a folder of the host, and a runtime that only watches."""

    root: Path
    host: Path
    store: Path
    watcher: Path

    def command(self, *words: str) -> list[str]:
        program = [sys.executable, "-m", "tests.support.containers", str(self.root)]
        name = [] if "--name" in words else ["--name", f"{PREFIX}{secrets.token_hex(4)}"]
        return [*program, str(self.store), *name, *words]

    def lamina(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment(),
            timeout=120,
        )

    def watch(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return self.lamina("--rm", "--runtime", str(self.watcher), *words, "image", "true")

    def shell(self, text: str, *words: str) -> str:
        done = self.lamina("--rm", *words, "image", "sh", "-c", text)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    @property
    def started(self) -> bool:
        return (self.watcher.parent / "config.json").exists()

    @property
    def document(self) -> dict[str, object]:
        document: dict[str, object] = json.loads((self.watcher.parent / "config.json").read_text())
        return document

    @property
    def mounted(self) -> set[str]:
        """Paths in the root that something was mounted on when the runtime was asked."""
        table = list(parse_mount_table((self.watcher.parent / "mountinfo").read_bytes()))
        root = next(each.mountpoint for each in table if each.filesystem == "overlay"
                    and each.mountpoint.startswith(str(bundles() / PREFIX)))  # fmt: skip
        return {each.mountpoint.removeprefix(root) for each in table
                if each.mountpoint.startswith(f"{root}/")}  # fmt: skip

    def link(self, path: str, target: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        place.symlink_to(target)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    require_root()
    watcher = tmp_path / "runtime/watcher"
    host = tmp_path / "host"
    for folder in (watcher.parent, host):
        folder.mkdir()
    watcher.write_text(WATCHING_RUNTIME)
    watcher.chmod(0o755)
    yield Case(small_root(tmp_path / "root"), host, tmp_path / "store", watcher)
    left = list(bundles().glob(f"{PREFIX}*"))
    assert not left
    assert not (tmp_path / "store/containers").exists()


@pytest.fixture(params=["runc", "crun"])
def runtime(case: Case, request: pytest.FixtureRequest) -> str:
    name: str = request.param
    require_tool(name)
    if name == "crun":
        done = case.lamina("--rm", "--runtime", name, "image", "true")
        if done.returncode == 125:
            pytest.skip(f"crun runs nothing on this machine: {done.stderr.decode()}")
    return name


Spoil = Callable[[Case], None]

REFUSED: dict[str, tuple[Spoil, tuple[str, ...], str]] = {
    "proc is a link": (lambda case: case.link("proc", str(case.host)), (), "/proc"),
    "sys is a link": (lambda case: case.link("sys", str(case.host)), (), "/sys"),
    "dev is a link": (lambda case: case.link("dev", str(case.host)), (), "/dev"),
    "dev is a link inside": (lambda case: case.link("dev", "/tmp"), (), "/dev"),
    "proc is a file": (lambda case: put(case, "proc", "text"), (), "/proc"),
    "dev is a FIFO": (lambda case: fifo(case, "dev"), (), "/dev"),
    "hosts is a folder": (lambda case: (case.root / "etc/hosts").mkdir(), (), "/etc/hosts"),
    "hosts is a FIFO": (lambda case: fifo(case, "etc/hosts"), (), "/etc/hosts"),
    "hosts is a device": (lambda case: device(case, "etc/hosts"), (), "/etc/hosts"),
    "hosts leads to a process": (
        lambda case: case.link("etc/hosts", "/proc/self/root/etc/hosts"), (), "/etc/hosts"),
    "hosts has no end": (lambda case: case.link("etc/hosts", "hosts"), (), "/etc/hosts"),
    "the workdir is a process's": (lambda _: None, ("-w", "/proc/self/fd/8"), "/proc/self/fd/8"),
    "the workdir leads to a process": (
        lambda case: case.link("work", "/proc/self/fd"), ("-w", "/work/8"), "/work"),
    "the workdir is a file": (lambda case: put(case, "work", ""), ("-w", "/work/x"), "/work/x"),
    "the volume is the root": (
        lambda case: case.link("data", "/"), ("-v", "{host}:/data"), "/data"),
    "the volume is in proc": (
        lambda case: case.link("data", "/proc"), ("-v", "{host}:/data/sys"), "/data/sys"),
    "the volume is a file": (
        lambda case: put(case, "data", ""), ("-v", "{host}:/data"), "/data"),
    "the tmpfs is a device": (
        lambda case: device(case, "scratch"), ("--tmpfs", "/scratch/x"), "/scratch/x"),
}  # fmt: skip


def put(case: Case, path: str, text: str) -> None:
    place = case.root / path
    if place.is_dir():
        place.rmdir()
    place.write_text(text)


def fifo(case: Case, path: str) -> None:
    place = case.root / path
    if place.is_dir():
        place.rmdir()
    os.mkfifo(place)


def device(case: Case, path: str) -> None:
    os.mknod(case.root / path, 0o020644, os.makedev(1, 7))


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_is_refused(case: Case, name: str) -> None:
    spoil, words, place = REFUSED[name]
    spoil(case)
    done = case.watch(*(word.format(host=case.host) for word in words))
    assert done.returncode == 125
    assert not case.started
    assert done.stderr.startswith(b"lamina: ")
    assert place.encode() in done.stderr
    assert os.listdir(case.host) == []


def test_links_to_the_host_lead_inside(case: Case, tmp_path: Path) -> None:
    """Whatever the image names on the host, only its own tree is changed."""
    source = tmp_path / "volume"
    source.mkdir()
    host = str(case.host)
    case.link("data", host)
    case.link("work", f"../../../../../../..{host}")
    case.link("etc/resolv.conf", f"{host}/resolv.conf")
    case.link("etc/hosts", f"../../..{host}/hosts")
    done = case.watch("-v", f"{source}:/data/x/y", "--tmpfs", "/data/t", "-w", "/work/w")
    assert done.returncode == 0, done.stderr
    assert os.listdir(host) == []
    assert os.listdir(source) == []
    inside = {f"{host}/{name}" for name in ("resolv.conf", "hosts", "x/y", "t")}
    assert inside <= case.mounted
    assert case.document["process"]["cwd"] == f"{host}/w"  # type: ignore[index]


def test_the_runtime_gets_no_links(case: Case, tmp_path: Path) -> None:
    """What is left to it are the kernel's own file systems, on folders that are there."""
    case.link("etc/hosts", "../run/hosts")
    (case.root / "proc").rmdir()
    for name in ("sys", "run", "srv"):
        # To overlayfs these are not there (overlayfs.rst, "whiteouts and opaque directories").
        shutil.rmtree(case.root / name, ignore_errors=True)
        os.mknod(case.root / name, 0o020000, 0)
    done = case.watch("-v", f"{tmp_path}:/srv", "-v", "/dev/null:/dev/own", "--tmpfs", "/t")
    assert done.returncode == 0, done.stderr
    mounts = case.document["mounts"]
    assert [mount["destination"] for mount in mounts] == [  # type: ignore[index, attr-defined]
        *("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"),
        "/dev/own",
    ]
    found = (case.watcher.parent / "found").read_text().split("\n")
    assert {"./proc", "./dev", "./sys", "./run/hosts"} <= set(found)
    assert {"/srv", "/t", "/run/hosts", "/etc/hostname", "/etc/resolv.conf"} <= case.mounted


def test_a_volume_through_a_link_is_not_filled(case: Case) -> None:
    """A link of the image leads into a folder of the host that is a volume."""
    case.link("data", "/srv/chosen")
    done = case.watch("-v", f"{case.host}:/srv", "--tmpfs", "/data/x")
    assert (done.returncode, case.started) == (125, False)
    assert os.listdir(case.host) == []
    done = case.watch("-v", f"{case.host}:/srv", "-w", "/data")
    assert (done.returncode, case.started) == (125, False)
    assert os.listdir(case.host) == []
    assert case.watch("-v", f"{case.host}:/srv", "-w", "/srv/named").returncode == 0
    assert os.listdir(case.host) == ["named"]


def test_links_in_a_volume_lead_inside(case: Case, tmp_path: Path) -> None:
    """Another container with the same volume may put links there."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "link").symlink_to(case.host)
    done = case.watch("-v", f"{volume}:/data", "--tmpfs", "/data/link/x")
    assert done.returncode == 0, done.stderr
    assert os.listdir(case.host) == []
    assert f"{case.host}/x" in case.mounted
    (volume / "fd").symlink_to("/proc/self/fd")
    done = case.watch("-v", f"{volume}:/data", "-w", "/data/fd/9")
    assert done.returncode == 125


def test_files_of_ours_are_not_put_into_a_volume(case: Case) -> None:
    (case.host / "hostname").write_text("theirs\n")
    done = case.watch("-v", f"{case.host}:/etc")
    assert done.returncode == 0
    assert b"/etc/hosts is in a volume" in done.stderr
    assert os.listdir(case.host) == ["hostname"]
    assert (case.host / "hostname").read_text() == "theirs\n"
    assert "/etc/hostname" in case.mounted


def test_links_as_images_have_them(case: Case, runtime: str, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/in").write_text("from the volume\n")
    (tmp_path / "one").write_text("one file\n")
    case.link("var/run", "/run")
    case.link("lib", "usr/lib")
    case.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    case.link("app", "/opt/app/v1")
    text = """cat /run/v/in /usr/lib/one /etc/resolv.conf; pwd; ls -l /etc/resolv.conf
              touch /var/run/v/out /opt/app/x /scratch/y; ls /scratch; echo z > /etc/hostname"""
    said = case.shell(
        text,
        *("--runtime", runtime, "-w", "/app", "--tmpfs", "/scratch"),
        *("-v", f"{tmp_path / 'volume'}:/var/run/v", "-v", f"{tmp_path / 'one'}:/lib/one:ro"),
    )
    lines = said.replace(Path("/etc/resolv.conf").read_text(), "RESOLV\n").splitlines()
    assert lines[:4] == ["from the volume", "one file", "RESOLV", "/opt/app/v1"]
    assert lines[4].endswith("/etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf")
    assert lines[5:] == ["y"]
    assert sorted(os.listdir(tmp_path / "volume")) == ["in", "out"]


def test_mounts_over_each_other(case: Case, runtime: str, tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"{name}\n")
    volumes = ["-v", f"{tmp_path / 'inner'}:/data/in:ro", "-v", f"{tmp_path / 'outer'}:/data"]
    text = """cat /data/name /data/in/name; touch /data/in/x 2>&1; touch /t/v/y; ls /t/v
              stat -c %a /t /home/app/s; cat /etc/hosts | wc -l; ls /dev/shm /dev/own"""
    words = ["--runtime", runtime, *volumes, "--tmpfs", "/t", "--tmpfs", "/t/v",
             "--tmpfs", "/home/app/s", "-v", "/dev/null:/dev/own"]  # fmt: skip
    (case.root / "t").mkdir(mode=0o750)
    lines = case.shell(text + "; exit 0", *words).splitlines()
    assert lines[:2] == ["outer", "inner"]
    assert "Read-only" in lines[2]
    assert lines[3:6] == ["y", "750", "1777"]
    assert int(lines[6]) > 0
    assert sorted(os.listdir(tmp_path / "outer")) == ["in", "name"]
    assert os.listdir(tmp_path / "inner") == ["name"]


def test_mounts_over_each_other_by_links(case: Case, tmp_path: Path) -> None:
    """What is above another is so by where it leads, not by how long its path is written."""
    for name in ("outer", "inner"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "name").write_text(f"{name}\n")
    case.link("short", "/data/in")
    case.link("very/long/path", "/data")
    inner, outer = f"{tmp_path / 'inner'}:/short", f"{tmp_path / 'outer'}:/very/long/path"
    said = case.shell("cat /data/name /data/in/name", "-v", inner, "-v", outer)
    assert said.split() == ["outer", "inner"]
    # A path that has no end in the image leads on in a volume.
    case.link("loop/in", "/loop/in")
    done = case.watch("-v", f"{tmp_path / 'outer'}:/loop", "--tmpfs", "/loop/in")
    assert done.returncode == 0, done.stderr
    assert {"/loop", "/loop/in"} <= case.mounted
    assert case.watch("--tmpfs", "/loop/in").returncode == 125


def test_links_in_a_volume_lead_where_runc_leads_them(case: Case, tmp_path: Path) -> None:
    """Inside the container's tree, whatever they are on the host."""
    require_tool("runc")
    inner, volume = tmp_path / "inner", tmp_path / "volume"
    for folder in (inner, volume):
        folder.mkdir()
    (inner / "name").write_text("inner\n")
    (volume / "down").symlink_to("/srv")
    (volume / "up").symlink_to("../../../opt")
    (case.root / "srv/x").mkdir(parents=True)
    (case.root / "opt/y").mkdir(parents=True)
    text = "for at in srv/x opt/y data/down/x data/up/y; do cat /$at/name; done"
    wanted = [(volume, "/data"), (inner, "/data/down/x"), (inner, "/data/up/y")]
    ours = case.shell(text, *(word for at in wanted for word in ("-v", f"{at[0]}:{at[1]}")))
    assert ours == "inner\n" * 4
    assert bare_runc(case.root, tmp_path / "bundle", text, wanted) == ours


def bare_runc(root: Path, bundle: Path, text: str, wanted: list[tuple[Path, str]]) -> str:
    """What a command says in a container that runc makes of a folder, without Lamina."""
    shutil.copytree(root, bundle / "rootfs", symlinks=True)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    document = json.loads((bundle / "config.json").read_text())
    document["process"] |= {"args": ["sh", "-c", text], "terminal": False}
    for source, target in wanted:
        document["mounts"].append(
            {"destination": target, "type": "bind", "source": str(source), "options": ["rbind"]}
        )
    (bundle / "config.json").write_text(json.dumps(document))
    command = ["runc", "--root", str(bundle / "state"), "run", f"{PREFIX}{secrets.token_hex(4)}"]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_volume_with_the_whole_host(case: Case) -> None:
    """It has the container's own mounts in it; all of them go."""
    (case.host / "file").write_text("mine\n")
    said = case.shell(f"cat /host{case.host}/file", "-v", "/:/host:ro")
    assert said == "mine\n"
    assert (case.host / "file").exists()


def test_a_kept_container_has_no_mount_points(case: Case, tmp_path: Path) -> None:
    name = f"{PREFIX}kept"
    case.link("var/run", "/run")
    words = ["--name", name, "-v", f"{case.host}:/var/run/v", "--tmpfs", "/x/y"]
    done = case.lamina(*words, "image", "sh", "-c", "echo kept > /root/file")
    assert done.returncode == 0, done.stderr
    upper = case.store / "containers" / name / "upper"
    assert sorted(str(each.relative_to(upper)) for each in upper.rglob("*")) == [
        "root",
        "root/file",
    ]
    again = case.lamina("--name", name, "image", "true")
    assert again.returncode == 125
    subprocess.run(["rm", "-r", str(case.store / "containers")], check=True)


def test_a_start_that_failed_leaves_its_name_free(case: Case) -> None:
    case.link("proc", "/tmp")
    words = ("--runtime", str(case.watcher), "--name", f"{PREFIX}free", "image", "true")
    for _ in range(2):
        done = case.lamina(*words)
        assert done.returncode == 125
        assert b"/proc" in done.stderr


def test_a_killed_run_leaves_volumes_as_they_are(case: Case) -> None:
    """They are mounted below the folder that is removed then."""
    (case.host / "folder").mkdir()
    (case.host / "folder/file").write_text("mine\n")
    name = f"{PREFIX}victim"
    words = ["--rm", "--name", name, "-v", f"{case.host}:/data", "--tmpfs", "/data/folder"]
    command = case.command(*words, "image", "sh", "-c", "echo ready; sleep 99")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while (bundles() / name).exists() or (case.store / "containers").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (case.host / "folder/file").read_text() == "mine\n"


def test_a_folder_that_is_mounted_on_is_not_removed(tmp_path: Path) -> None:
    require_root()
    (tmp_path / "host").mkdir()
    (tmp_path / "host/file").write_text("mine\n")
    folders = create_folders(str(tmp_path / "store"), "box", str(tmp_path / "run"))
    subprocess.run(["mount", "--bind", tmp_path / "host", folders.rootfs], check=True)
    try:
        folders.remove(keep_changes=False)
        assert (tmp_path / "host/file").exists()
    finally:
        subprocess.run(["umount", folders.rootfs], check=True)
    folders.remove(keep_changes=False)
    assert not os.path.exists(folders.bundle)
