"""``lamina run`` with a real runtime; a folder of this machine stands for the mounted image."""

from __future__ import annotations

import json
import os
import pty
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.containers import bundles, runtime_state, small_root
from tests.support.tools import require_root, require_tool
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]
PREFIX = f"test-{os.getpid()}-"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tool("runc")
    return small_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    for folder in (runtime_state(), bundles()):
        if not folder.exists():
            continue
        left = [name for name in os.listdir(folder) if name.startswith(PREFIX)]
        assert not left, folder


Run = Callable[..., subprocess.CompletedProcess[bytes]]


def command_line(root: Path, store: Path, *arguments: str) -> list[str]:
    """The words of a run; the container gets a name of its own unless one is given."""
    program = [sys.executable, "-m", "tests.support.containers", str(root), str(store)]
    name = [] if "--name" in arguments else ["--name", f"{PREFIX}{secrets.token_hex(4)}"]
    return [*program, *name, *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


@pytest.fixture
def run(root: Path, store: Path) -> Run:
    def call(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        command = command_line(root, store, *arguments)
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run(command, capture_output=True, env=environment(), timeout=60, **given)

    return call


def script(text: str, *options: str) -> list[str]:
    return ["--rm", *options, "image", "sh", "-c", text]


def test_exit_code_and_streams(run: Run) -> None:
    done = run(*script("echo out; echo err >&2; exit 7"))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_a_signal_that_ends_the_command(root: Path, store: Path) -> None:
    command = command_line(
        root, store, "--name", f"{PREFIX}target", *script("echo ready; sleep 99")
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        subprocess.run(
            ["runc", "--root", runtime_state(), "kill", f"{PREFIX}target", "KILL"], check=True
        )
        assert process.wait(timeout=60) == 137


def test_command_of_the_image(run: Run) -> None:
    done = run("--rm", "-i", "image", stdin=b"echo from a shell\n")
    assert (done.returncode, done.stdout) == (0, b"from a shell\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [("nonsense", 127), ("/bin/nonsense", 127), ("/etc/not-executable", 126), ("/etc", 126)],
)
def test_commands_that_cannot_run(run: Run, command: str, code: int) -> None:
    done = run("--rm", "image", command)
    assert done.returncode == code
    assert command.encode() in done.stderr


def test_failures_of_ours(run: Run) -> None:
    for options in (
        ["-u", "nobody"],
        ["-w", "relative"],
        ["-v", "nonsense"],
        ["--runtime", "nonsense"],
    ):
        done = run("--rm", *options, "image", "true")
        assert done.returncode == 125, options
        assert done.stderr.startswith(b"lamina: ")


def test_environment(run: Run) -> None:
    done = run(*script("env | sort", "-e", "MINE=1", "--hostname", "box"))
    assert done.stdout.decode().split() == [
        "FROM=image",
        "HOME=/root",
        "HOSTNAME=box",
        "MINE=1",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/",
        "SHLVL=1",
    ]


def test_user_and_groups(run: Run) -> None:
    done = run(*script("id; echo $HOME; touch /root/x /home/app/x; ls -n /home/app/x", "-u", "app"))
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "uid=1000(app) gid=1001(app) groups=44(video),1001(app)"
    assert lines[1] == "/home/app"
    assert lines[2].split()[2:4] == ["1000", "1001"]
    assert b"/root/x: Permission denied" in done.stderr
    assert run(*script("id -u; id -g", "-u", "7:8")).stdout == b"7\n8\n"


def test_working_directory_is_made(run: Run) -> None:
    assert run(*script("pwd", "-w", "/new/place")).stdout == b"/new/place\n"


def test_volumes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/in").write_text("in")
    where = f"{tmp_path / 'data'}:/a/b"
    assert run(*script("cat /a/b/in; echo out > /a/b/out", "-v", where)).stdout == b"in"
    assert (tmp_path / "data/out").read_text() == "out\n"
    done = run(*script("touch /a/b/more", "-v", f"{where}:ro"))
    assert done.returncode == 1
    assert b"Read-only file system" in done.stderr


def test_read_only_root(run: Run) -> None:
    done = run(
        *script("touch /x; touch /scratch/x && echo scratch", "--read-only", "--tmpfs", "/scratch")
    )
    assert done.stdout == b"scratch\n"
    assert b"Read-only file system" in done.stderr


def test_the_root_is_writable_and_the_image_is_not(run: Run, root: Path) -> None:
    done = run(*script("rm /etc/passwd && echo new > /etc/group && ls /etc"))
    assert done.returncode == 0
    assert "passwd" not in done.stdout.decode().split()
    assert (root / "etc/passwd").exists()


def test_changes_are_kept_and_named(run: Run, store: Path) -> None:
    done = run(
        "--name", f"{PREFIX}keeper", "image", "sh", "-c", "echo kept > /root/file; chmod 700 /tmp"
    )
    changes = store / f"containers/{PREFIX}keeper/upper"
    assert done.stderr.decode() == f"lamina: what the container wrote is kept in {changes}\n"
    assert sorted(str(path.relative_to(changes)) for path in changes.rglob("*")) == [
        "root",
        "root/file",
        "tmp",
    ]
    done = run("--name", f"{PREFIX}keeper", "image", "true")
    assert done.returncode == 125
    assert f"name '{PREFIX}keeper'".encode() in done.stderr
    shutil.rmtree(changes.parent)


@pytest.mark.parametrize("options", [["--rm"], []])
def test_nothing_is_left(run: Run, store: Path, options: list[str]) -> None:
    words = "touch /root/x" if options else "true"
    assert run(*options, "image", "sh", "-c", words).returncode == 0
    assert not list(store.rglob("*")) or os.listdir(store) == []


def test_standard_input(run: Run) -> None:
    data = os.urandom(300_000)
    assert run("--rm", "-i", "image", "cat", stdin=data).stdout == data
    assert run("--rm", "image", "cat", stdin=data).stdout == b""


def test_network(run: Run) -> None:
    text = "cat /sys/class/net/*/address | wc -l; ls /sys/class/net"
    assert run(*script(text, "--network", "none")).stdout.split()[1:] == [b"lo"]
    here = sorted(os.listdir("/sys/class/net"))
    assert sorted(run(*script(text)).stdout.decode().split()[1:]) == here


def test_name_resolution_comes_from_the_host(run: Run) -> None:
    done = run(*script("cat /etc/hosts /etc/resolv.conf"))
    expected = Path("/etc/hosts").read_bytes() + Path("/etc/resolv.conf").read_bytes()
    assert done.stdout == expected


def test_capabilities(run: Run) -> None:
    text = "grep CapEff /proc/self/status | cut -f2"
    assert int(run(*script(text)).stdout, 16) == 0x00000000A80425FB
    assert int(run(*script(text, "--cap-drop", "ALL")).stdout, 16) == 0
    assert int(run(*script(text, "--cap-drop", "all", "--cap-add", "chown")).stdout, 16) == 1
    assert int(run(*script(text, "-u", "app")).stdout, 16) == 0


def test_denied_system_calls(run: Run) -> None:
    done = run(*script("unshare -U true"))
    assert done.returncode != 0
    assert b"Operation not permitted" in done.stderr


def test_limits(run: Run) -> None:
    assert (
        run(*script("ulimit -n; ulimit -Hn", "--ulimit", "nofile=100:200")).stdout == b"100\n200\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(root: Path, store: Path, number: signal.Signals) -> None:
    text = (
        f"trap 'echo caught; exit 42' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    )
    command = command_line(root, store, *script(text))
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"caught\n"
        assert process.wait() == 42


def test_a_killed_run_leaves_nothing(root: Path, store: Path) -> None:
    command = command_line(
        root,
        store,
        "--rm",
        "--name",
        f"{PREFIX}victim",
        "image",
        "sh",
        "-c",
        "echo ready; sleep 99",
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        inside = json.loads(
            subprocess.run(
                ["runc", "--root", runtime_state(), "state", f"{PREFIX}victim"],
                capture_output=True,
                check=True,
            ).stdout
        )["pid"]
        process.kill()
        process.wait()
    wait_until(lambda: not os.path.exists(f"/proc/{inside}"))
    wait_until(lambda: not (bundles() / f"{PREFIX}victim").exists())
    wait_until(lambda: not (store / "containers").exists())


def test_a_lost_server_ends_the_container(root: Path, store: Path) -> None:
    command = command_line(root, store, *script("echo ready; sleep 99"))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        server = next(
            pid for pid in children if b"runc" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(int(server), signal.SIGKILL)
        assert process.wait(timeout=60) == 125
        assert b"the server of the image ended" in process.stderr.read()


def test_terminal(root: Path, store: Path) -> None:
    text = "tty; stty size; echo $TERM; read line; echo got $line"
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.environ.update(environment())
            command = command_line(root, store, *script(text, "-it"))
            os.execv(command[0], command)
        finally:
            os._exit(99)
    output = b""
    try:
        while b"xterm" not in output:
            output += os.read(master, 1000)
        os.write(master, b"words\n")
        while b"got words" not in output:
            output += os.read(master, 1000)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"/dev/pts/0" in output


def test_interrupt_key_on_a_terminal_reaches_the_command_once(root: Path, store: Path) -> None:
    """Without -t the terminal signals the group; the runtime must not get it once more from us."""
    text = (
        "trap 'n=$((n+1)); echo caught $n' INT; echo ready; sleep 1; sleep 1; echo end $n; exit 5"
    )
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.environ.update(environment())
            command = command_line(root, store, *script(text))
            os.execv(command[0], command)
        finally:
            os._exit(99)
    output = b""
    try:
        while b"ready" not in output:
            output += os.read(master, 1000)
        os.write(master, b"\x03")
        while b"end" not in output:
            output += os.read(master, 1000)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(master)
    assert os.waitstatus_to_exitcode(status) == 5
    assert b"end 1" in output


def test_terminal_without_one(run: Run) -> None:
    done = run("--rm", "-t", "image", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(b"lamina: -t asks for a terminal")


def test_two_at_once(root: Path, store: Path) -> None:
    commands = [command_line(root, store, *script(f"sleep 0.3; exit {code}")) for code in (3, 4)]
    processes = [subprocess.Popen(command, env=environment()) for command in commands]
    assert [process.wait(timeout=60) for process in processes] == [3, 4]
