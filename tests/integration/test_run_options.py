"""The options that docker users give ``lamina run``, with a real runtime."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_run_container import command_line, environment, script
from tests.support.containers import small_root
from tests.support.tools import find_program, missing, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tool("runc")
    root = small_root(tmp_path_factory.mktemp("root"))
    (root / "seeded").mkdir(mode=0o750)
    (root / "seeded/file").write_text("of the image\n")
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Iterator[Run]:
    """Runs a script with some options; returns its output."""
    store = tmp_path / "store"

    def call(text: str, *options: str, fails: bool = False) -> str:
        done = subprocess.run(
            command_line(root, store, *script(text, *options)),
            capture_output=True,
            env=environment(),
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode != 0) is fails, done.stderr.decode()
        return (done.stderr if fails else done.stdout).decode()

    yield call
    assert not (store / "containers").exists()


def test_limits_are_those_of_the_control_group(run: Run) -> None:
    # Of cgroup v1 or v2, whichever holds the controller here.
    text = (
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null;"
        "cat pids/pids.max pids.max 2>/dev/null; cat cpu/cpu.cfs_quota_us cpu.max 2>/dev/null;"
        "cat cpuset/cpuset.cpus cpuset.cpus 2>/dev/null; true"
    )
    options = ("-m", "64m", "--pids-limit", "50", "--cpus", "0.5", "--cpuset-cpus", "0")
    found = run(text, *options).split()
    assert [word for word in found if word != "100000"] == [str(64 << 20), "50", "50000", "0"]


def test_more_memory_than_allowed_is_not_given(run: Run) -> None:
    text = "dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null; echo $?"
    assert run(text) == "0\n"
    assert run(text, "-m", "32m", "--memory-swap", "32m") == "137\n"


def test_init_reaps(run: Run) -> None:
    if not any(find_program(name) for name in ("docker-init", "tini-static", "catatonit")):
        missing("none of docker-init, tini-static and catatonit")
    # Process 1 is the init, and the script a child of it.
    text = "cat /proc/1/cmdline | tr '\\0' ' '; echo; test $$ != 1 && echo child"
    first, second = run(text, "--init").splitlines()
    assert first.startswith("/sbin/docker-init -- sh -c")
    assert second == "child"


def test_names(run: Run) -> None:
    options = ("--add-host", "db:10.1.2.3", "--add-host", "six=[::2]", "--dns", "192.0.2.1")
    found = run("cat /etc/hosts /etc/resolv.conf", *options, "--dns-search", "example.com")
    assert "10.1.2.3\tdb\n::2\tsix\n" in found
    resolver = found.partition("::2\tsix\n")[2].splitlines()
    servers = [line for line in resolver if line.startswith("nameserver")]
    assert servers == ["nameserver 192.0.2.1"]
    assert "search example.com" in resolver
    assert run("hostname; cat /proc/sys/kernel/domainname", "-h", "box", "--domainname", "dom") == (
        "box\ndom\n"
    )


def test_memory_folders(run: Run) -> None:
    options = ("--tmpfs", "/a:size=1m,mode=700", "--mount", "type=tmpfs,dst=/b,tmpfs-size=2m")
    text = "grep -E ' /(a|b|dev/shm) ' /proc/mounts | sort -k 2; stat -c %a /a"
    a, b, shm, mode = run(text, *options, "--shm-size", "3m").splitlines()
    assert {"size=1024k", "noexec", "mode=700"} <= set(a.split()[3].split(","))
    assert "size=2048k" in b
    assert "size=3072k" in shm
    assert mode == "700"
    text = "cp /bin/busybox /a/true && /a/true && echo ran"
    assert run(text, "--tmpfs", "/a:exec") == "ran\n"
    assert "ermission denied" in run(text, "--tmpfs", "/a", fails=True)


def test_groups_and_security(run: Run) -> None:
    assert run("id -G", "-u", "app", "--group-add", "video", "--group-add", "77") == "1001 44 77\n"
    text = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | cut -f2"
    assert run(text).split() == ["0", "2"]
    options = ("--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined")
    assert run(text, *options).split() == ["1", "0"]
    write = "(echo box > /proc/sys/kernel/hostname) 2>/dev/null && hostname || echo refused"
    assert run(write) == "refused\n"
    options = ("--security-opt", "systempaths=unconfined")
    assert run(write, *options) == "box\n"
    assert run("cat /proc/self/oom_score_adj", "--oom-score-adj", "77") == "77\n"


def test_devices(run: Run) -> None:
    text = "test -c /dev/fuse && head -c 0 /dev/fuse; echo $?"
    assert run(text) == "1\n"
    assert run("test -c /dev/mine && echo there", "--device", "/dev/fuse:/dev/mine:r") == "there\n"


def test_namespaces_of_the_host(run: Run) -> None:
    text = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts"
    here = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "uts")]
    assert run(text, "--ipc", "host", "--uts", "host").split() == here
    assert not set(run(text).split()) & set(here)
    assert run(f"kill -0 {os.getpid()} && echo seen", "--pid", "host") == "seen\n"


def test_sysctl(run: Run) -> None:
    options = ("--network", "none", "--sysctl", "net.ipv4.ip_default_ttl=99")
    assert run("cat /proc/sys/net/ipv4/ip_default_ttl", *options) == "99\n"
    said = run("true", "--sysctl", "net.ipv4.ip_default_ttl=99", fails=True)
    assert "would change the host's network" in said


def test_own_volumes(run: Run, tmp_path: Path) -> None:
    text = "cat /seeded/file; echo new > /seeded/file; cat /seeded/file; stat -c %a /seeded /data"
    found = run(text, "--read-only", "-v", "/seeded", "--mount", "dst=/data").splitlines()
    assert found == ["of the image", "new", "750", "755"]


def test_own_volumes_are_kept_with_the_changes(root: Path, tmp_path: Path) -> None:
    options = ("--name", f"volumes-{os.getpid()}", "-v", "/seeded", "-v", "/data")
    text = "echo new > /seeded/new; echo more > /data/more"
    words = [*options, "image", "sh", "-c", text]
    store = tmp_path / "store"
    done = subprocess.run(command_line(root, store, *words), env=environment(), timeout=60)
    assert done.returncode == 0
    kept = store / f"containers/volumes-{os.getpid()}"
    volumes = (kept / "volumes").rglob("*")
    files = {path.name: path.read_text() for path in volumes if path.is_file()}
    assert files == {"new": "new\n", "more": "more\n"}


def test_volumes_of_which_one_is_refused_leave_nothing(run: Run) -> None:
    assert "leads out" in run("true", "-v", "/bin", "-v", "/dev/fd", fails=True)


def test_mounts_of_the_host_that_come_later(root: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared], check=True)
    try:
        subprocess.run(["mount", "--make-shared", shared], check=True)
        (shared / "inner").mkdir()
        for mode, expected in (("rslave", b"later\n"), ("rprivate", b"")):
            text = "echo ready; read line; cat /v/inner/file 2>/dev/null"
            words = script(text, "-i", "-v", f"{shared}:/v:{mode}")
            command = command_line(root, tmp_path / "store", *words)
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment()) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "inner"], check=True)
                try:
                    (shared / "inner/file").write_text("later\n")
                    process.stdin.write(b"go\n")
                    process.stdin.close()
                    assert process.stdout.read() == expected
                finally:
                    subprocess.run(["umount", shared / "inner"], check=True)
    finally:
        subprocess.run(["umount", "-l", shared], check=True)


def test_the_name_in_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "id"
    # `run` gives it a name.
    assert run("true", "--cidfile", str(path)) == ""
    assert path.read_text().startswith("test-")
    assert "is there already" in run("true", "--cidfile", str(path), fails=True)
    path.unlink()
    assert run("true", "--cidfile", str(path), "-u", "nobody", fails=True)
    assert not path.exists()
