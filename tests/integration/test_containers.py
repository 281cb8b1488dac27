"""Detached containers with a real runtime: their life, and what is left when those who look after
them are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.containers import small_root
from tests.support.tools import require_root, require_tool
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT: Final = Path(__file__).parents[2]
COUNT: Final = 20
ENDS: Final = "trap 'echo still' USR1; "
TALKS: Final = ENDS + (
    "trap 'echo end >&2; exit {code}' TERM; echo begin;while :; do sleep 0.1; done"
)


class Node:
    """A store and a runtime folder of their own, and a root file system in an image's place."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.store = folder / "store"
        self.runtime = folder / "run"
        self.names: set[str] = set()
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "LAMINA_STORE": str(self.store),
            "LAMINA_RUNTIME": str(self.runtime),
        }

    def words(self, *words: str) -> list[str]:
        if words[0] == "run":
            self.names |= {word for before, word in pairwise(words) if before == "--name"}
            program = ["tests.support.containers", str(self.root), str(self.store)]
            if any(word.startswith(ENDS) for word in words):
                # By itself, however late the machine lets it.
                program += ["--stop-timeout", "100"]
            return [sys.executable, "-m", *program, *words[1:]]
        return [sys.executable, "-m", "lamina", *words]

    def call(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words),
            capture_output=True,
            env=self.environment,
            timeout=120,
            text=True,
            input=stdin.decode(),
        )

    def __call__(self, *words: str) -> str:
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def all(self, *words: str) -> dict[str, dict[str, Any]]:
        lines = self("ps", "-a", "--json", *words).splitlines()
        return {item["container"]: item for item in map(json.loads, lines)}

    def runc(self, *words: str) -> str:
        command = ["runc", "--root", str(self.runtime / "runtime"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def logged(self, name: str, *lines: str) -> None:
        """Wait until those lines are all that a container has in its log of standard output."""
        path = self.store / "containers" / name / "container.log"

        def is_there() -> bool:
            entries = [line.split(" ", 3) for line in path.read_text().splitlines()]
            return tuple(entry[3] for entry in entries if entry[1] == "stdout") == lines

        wait_until(is_there)

    def left(self) -> list[str]:
        """What there is of containers on this machine."""
        with open("/proc/self/mountinfo") as file:
            found = [line for line in file if str(self.runtime) in line]
        found += [str(path) for path in self.runtime.glob("containers/*")]
        found += [str(path) for path in self.runtime.glob("runtime/*")]
        found += [str(path) for path in self.store.glob("containers/*")]
        found += [f"control group {path}" for path in self._empty_control_groups()]
        for path in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{path}/cmdline", "rb") as file:
                words = file.read()
                if os.fsencode(self.runtime) in words or os.fsencode(self.root) in words:
                    found.append(f"{path}: {words!r}")
        return found

    def _empty_control_groups(self) -> Iterator[str]:
        """Those of our containers; one with processes may be of another's of the same name."""
        for folder, names, _ in os.walk("/sys/fs/cgroup"):
            for name in names:
                if not self.names & {name, name.rpartition("-")[0]}:
                    continue
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if not Path(path, "cgroup.procs").read_text():
                        yield path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tool("runc")
    return small_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def node(root: Path, tmp_path: Path) -> Iterator[Node]:
    node = Node(root, tmp_path)
    try:
        yield node
    finally:
        names = node.call("ps", "-aq").stdout.split()
        if names:
            node("rm", "-f", *names)
        wait_until(lambda: not node.left())


def test_a_life(node: Node) -> None:
    words = ("-l", "tier=web", "--name", "web", "image", "sh", "-c", TALKS.format(code=7))
    assert node("run", "-d", *words) == "web\n"
    assert [line.split()[0] for line in node.runc("list").splitlines()[1:]] == ["web"]
    (facts,) = node.all().values()
    assert facts["status"] == "running"
    assert facts["labels"] == {"tier": "web"}
    assert node("ps", "-q", "-f", "label=tier=db") == ""
    node.logged("web", "begin")
    node("kill", "-s", "USR1", "web")
    node.logged("web", "begin", "still")
    assert node("stop", "web") == "web\n"
    done = node.call("logs", "web")
    assert (done.stdout, done.stderr) == ("begin\nstill\n", "end\n")
    assert node.all()["web"]["exit_code"] == 7
    assert node("ps").splitlines()[1:] == []
    assert "exited (7)" in node("ps", "-a")
    assert node("wait", "web") == "7\n"
    assert "already" in node.call("run", "-d", "--name", "web", "image", "true").stderr
    node("rm", "web")
    assert not node.all()


def test_the_log_is_in_the_form_of_cri(node: Node) -> None:
    long = "x" * 20000
    text = f"printf 'one\\n\\n'; printf {long}; echo; printf open"
    node("run", "-d", "--name", "log", "image", "sh", "-c", text)
    assert node("wait", "log") == "0\n"
    lines = (node.store / "containers/log/container.log").read_text().splitlines()
    entries = [line.split(" ", 3) for line in lines]
    assert [(stream, tag) for _, stream, tag, _ in entries] == [
        ("stdout", tag) for tag in ("F", "F", "P", "F", "P")
    ]
    assert [len(content) for *_, content in entries] == [3, 0, 16384, 20000 - 16384, 4]
    assert all(len(moment) == 30 and moment.endswith("Z") for moment, *_ in entries)
    assert node("logs", "log") == f"one\n\n{long}\nopen"
    assert node("logs", "--tail", "1", "log") == "open"
    assert node("logs", "--until", "1h", "log") == ""
    assert node("logs", "-t", "--since", "1h", "log").startswith(entries[0][0])


def test_following_a_log_ends_with_the_container(node: Node) -> None:
    text = "echo one; while sleep 0.1; do [ -e /go ] && echo two && exit; done"
    node("run", "-di", "--rm", "--name", "follow", "image", "sh", "-c", text)
    follower = subprocess.Popen(
        node.words("logs", "-f", "follow"), stdout=subprocess.PIPE, env=node.environment
    )
    with follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"one\n"
        node("exec", "follow", "touch", "/go")
        assert follower.stdout.read() == b"two\n"
        assert follower.wait(60) == 0


def test_entering(node: Node) -> None:
    node("run", "-d", "--name", "in", "-e", "A=1", "image", "sh", "-c", TALKS.format(code=0))
    done = node.call("exec", "-i", "in", "sh", "-c", "cat; echo err >&2; exit 5", stdin=b"given")
    assert (done.returncode, done.stdout, done.stderr) == (5, "given", "err\n")
    text = "id -u; id -G; pwd; echo $A $B $HOME"
    words = ("-u", "app", "-w", "/tmp", "-e", "B=2", "in", "sh", "-c", text)
    assert node("exec", *words).splitlines() == ["1000", "1001 44", "/tmp", "1 2 /home/app"]
    assert node.call("exec", "in", "nonsense").returncode == 127
    assert node.call("exec", "in", "/etc/not-executable").returncode == 126
    assert node.call("exec", "-u", "nobody", "in", "true").returncode == 125
    assert node.call("exec", "absent", "true").returncode == 125
    assert node.call("exec", "--privileged", "in", "true").stderr.count("--cap-add") == 1
    # A link of the container's leads nowhere: names are then unknown.
    node("exec", "in", "sh", "-c", "mv /etc/passwd /mine; ln -s /mine /etc/passwd")
    assert node.call("exec", "-u", "app", "in", "true").returncode == 125
    assert node("exec", "-u", "1000", "in", "id", "-u") == "1000\n"
    node("exec", "-d", "in", "sh", "-c", "touch /left")
    wait_until(lambda: node.call("exec", "in", "test", "-e", "/left").returncode == 0)
    # Nothing is opened that is no file, for a device may do something then.
    node("exec", "in", "sh", "-c", "rm /etc/passwd; mkdir /etc/passwd")
    assert "no user 'app'" in node.call("exec", "-u", "app", "in", "true").stderr


def test_a_stop_that_is_ignored(node: Node) -> None:
    text = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    node("run", "-d", "--name", "deaf", "--stop-timeout", "1", "image", "sh", "-c", text)
    node.logged("deaf", "ready")
    node("stop", "deaf")
    assert node("wait", "deaf") == "137\n"


def test_what_outlives_the_first_process_keeps_nobody_waiting(node: Node) -> None:
    """In the host's processes it does, until the control group is ended; it may write all along."""
    node("run", "-d", "--name", "loud", "--pid", "host", "image", "sh", "-c", "yes & exit 3")
    assert node("wait", "loud") == "3\n"


def test_what_is_named_from_here_is_found_and_secrets_are_not_shown(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = shutil.which("runc")
    assert program is not None
    runtime = tmp_path / "own-runtime"
    runtime.symlink_to(program)
    monkeypatch.chdir(tmp_path)
    words = ("--runtime", "./own-runtime", "-e", "PASSWORD=hidden", "image", "sleep", "99")
    node("run", "-d", "--name", "here", *words)
    found = node.all()["here"]
    assert node("exec", "here", "sh", "-c", "echo $PASSWORD") == "hidden\n"
    record = json.loads((node.store / "containers/here/container.json").read_text())
    for pid in (record["server"][0], *found["supervisors"]):
        shown = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
        assert shown == f"lamina run -d {node.runtime}/containers/here".encode()
    runtime.rename(tmp_path / "away")
    assert node.all()["here"]["status"] == "unknown"
    (tmp_path / "away").rename(runtime)


def test_words_that_are_no_utf8(node: Node) -> None:
    node("run", "-d", "--name", "odd", "image", "sh", "-c", "exit 4", os.fsdecode(b"\xff"))
    assert node("wait", "odd") == "4\n"
    assert node.all()["odd"]["command"][-1] == os.fsdecode(b"\xff")


def test_a_foreground_stop_that_is_ignored(node: Node) -> None:
    text = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    words = node.words("run", "--rm", "--stop-timeout", "1", "image", "sh", "-c", text)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=node.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(60) == 137


def test_a_container_in_the_foreground_is_one_too(node: Node) -> None:
    words = node.words("run", "--rm", "--name", "front", "image", "sh", "-c", TALKS.format(code=3))
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=node.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begin\n"
        assert node("exec", "front", "echo", "in") == "in\n"
        assert node.call("logs", "front").returncode != 0
        assert node("stop", "front") == "front\n"
        assert process.wait(60) == 3
    assert not node.all()


def test_what_cannot_start_leaves_nothing(node: Node) -> None:
    for words, code in ((("nonsense",), 127), (("/etc/not-executable",), 126)):
        done = node.call("run", "-d", "image", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert words[0] in done.stderr
    assert node.call("run", "-d", "-u", "nobody", "image", "true").returncode == 125
    wait_until(lambda: not node.left())


def test_removed_at_its_end(node: Node) -> None:
    node("run", "-d", "--rm", "--name", "brief", "image", "sh", "-c", TALKS.format(code=3))
    with subprocess.Popen(
        node.words("wait", "brief"), stdout=subprocess.PIPE, env=node.environment
    ) as waiter:
        node.logged("brief", "begin")
        node("stop", "brief")
        assert waiter.stdout is not None
        assert waiter.stdout.read() in (b"3\n", b"")
    wait_until(lambda: not node.left())


def test_a_terminal(node: Node) -> None:
    node("run", "-dt", "--name", "tty", "image", "sh", "-c", "tty; exit 4")
    assert node("wait", "tty") == "4\n"
    assert node("logs", "tty").startswith("/dev/pts/0\n")


def test_rm_of_one_that_runs(node: Node) -> None:
    node("run", "-d", "--name", "busy", "image", "sleep", "99")
    done = node.call("rm", "busy")
    assert done.returncode != 0
    assert "hint: `lamina stop busy`" in done.stderr
    node("rm", "-f", "busy")
    wait_until(lambda: not node.left())


def test_a_supervisor_that_is_told_to_end(node: Node) -> None:
    node("run", "-d", "--name", "told", "image", "sh", "-c", TALKS.format(code=5))
    node.logged("told", "begin")
    supervisor, guardian = node.all()["told"]["supervisors"]
    os.kill(guardian, signal.SIGTERM)
    os.kill(supervisor, signal.SIGTERM)
    assert node("wait", "told") == "5\n"


def test_one_that_is_never_killed(node: Node) -> None:
    text = "trap 'echo asked' TERM; trap 'echo still' USR1; echo begin; while :; do sleep 0.1; done"
    words = ("--stop-timeout", "-1", "--name", "calm", "image", "sh", "-c", text)
    node("run", "-d", *words)
    node.logged("calm", "begin")
    os.kill(node.all()["calm"]["supervisors"][0], signal.SIGTERM)
    node.logged("calm", "begin", "asked")
    node("kill", "-s", "USR1", "calm")
    node.logged("calm", "begin", "asked", "still")


@pytest.mark.parametrize("verb", ["create", "start"])
def test_a_supervisor_that_is_killed_at_the_start(node: Node, tmp_path: Path, verb: str) -> None:
    """Before the command runs it is told as a failure, after it as nothing."""
    runtime = tmp_path / "runtime"
    runtime.write_text(
        '#!/bin/sh\nrunc "$@" || exit\ncase " $* " in'
        f' *" {verb} "*) kill -9 $PPID; sleep 0.2;; esac\n'
    )
    runtime.chmod(0o755)
    text = "echo begin; sleep 99"
    words = ("--runtime", str(runtime), "--name", "early", "image", "sh", "-c", text)
    done = node.call("run", "-d", *words)
    if verb == "create":
        assert done.returncode == 137
        assert "before the command was started" in done.stderr
        # The runtime itself ends after that.
        wait_until(lambda: not node.left())
    else:
        assert (done.returncode, done.stdout) == (0, "early\n"), done.stderr
        node.logged("early", "begin")
        assert node.all()["early"]["status"] == "running"


def test_a_stop_of_one_that_is_being_made(node: Node, tmp_path: Path) -> None:
    asked, go, runtime = (tmp_path / name for name in ("asked", "go", "runtime"))
    runtime.write_text(
        f'#!/bin/sh\ncase " $* " in *" state "*) touch {asked};; *" create "*)'
        f' while [ ! -e {go} ]; do sleep 0.05; done;; esac; exec runc "$@"\n'
    )
    runtime.chmod(0o755)
    words = ("--runtime", str(runtime), "--stop-timeout", "1", "--name", "hasty", "image")
    with subprocess.Popen(
        node.words("run", "-d", *words, "sleep", "99"), env=node.environment
    ) as starter:
        wait_until((node.store / "containers/hasty/container.json").exists)
        with subprocess.Popen(node.words("stop", "hasty"), env=node.environment) as stopper:
            wait_until(asked.exists)
            go.touch()
            assert stopper.wait(60) == 0
        starter.wait(60)


def test_a_stop_of_one_that_is_paused(node: Node) -> None:
    node("run", "-d", "--name", "paused", "image", "sh", "-c", TALKS.format(code=6))
    node.logged("paused", "begin")
    node.runc("pause", "paused")
    assert node.all()["paused"]["status"] == "paused"
    assert "is paused" in node.call("exec", "paused", "true").stderr
    node("stop", "paused")
    assert node("wait", "paused") == "6\n"


def test_nobody_waits_for_its_start(node: Node) -> None:
    """An interrupt while the container is made: it ends, with nobody who knows its name."""
    words = node.words("run", "-d", "--rm", "--name", "unwanted", "image", "sleep", "99")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, env=node.environment)
    with process:
        wait_until((node.runtime / "containers/unwanted").exists)
        process.kill()
    wait_until(lambda: not node.left())


def test_nobody_is_left(node: Node) -> None:
    """A container that outlives all who look after it is ended by whoever meets it."""
    for name in ("seen", "waited", "brief"):
        rm = ["--rm"] if name == "brief" else []
        node("run", "-d", *rm, "--name", name, "image", "sh", "-c", TALKS.format(code=0))
        node.logged(name, "begin")
        facts = json.loads((node.store / f"containers/{name}/container.json").read_text())
        # First who would notice the end of the others.
        for pid in (facts["server"][0], *facts["supervisors"]):
            os.kill(pid, signal.SIGSTOP)
        for pid in (facts["server"][0], *facts["supervisors"]):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: {each["status"] for each in node.all().values()} == {"lost"})
    assert node("wait", "waited") == "137\n"
    assert node.all()["waited"]["exit_code"] == 137
    node("rm", "waited", "seen")
    assert node.call("stop", "brief").returncode == 0
    wait_until(lambda: not node.left())


def start_all(node: Node) -> None:
    processes = []
    for number in range(COUNT):
        words = ("-d", "--name", f"c{number}", "image", "sh", "-c", TALKS.format(code=number))
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(node.words("run", *words), stdout=pipe, env=node.environment)
        )
    for number, process in enumerate(processes):
        assert process.communicate(timeout=120)[0] == f"c{number}\n".encode()
        assert process.returncode == 0


def test_supervisors_are_killed(node: Node) -> None:
    """Of twenty containers, of five the supervisor, of five the guardian, of five both: the first
    ten go on and keep their exit codes, the five end, and nothing is left of any.
    """
    start_all(node)
    names = [f"c{number}" for number in range(COUNT)]
    both = {name for number, name in enumerate(names) if number % 4 == 3}
    every = node.all()
    for number, name in enumerate(names):
        node.logged(name, "begin")
        pids = every[name]["supervisors"]
        for pid in (pids[:0], pids[:1], pids[1:], pids)[number % 4]:
            os.kill(pid, signal.SIGKILL)
    going = [name for name in names if name not in both]
    for name in going:
        assert node("exec", name, "echo", name) == f"{name}\n"
    node("kill", "-s", "USR1", *going)
    for name in going:
        node.logged(name, "begin", "still")
    wait_until(lambda: set(node("ps", "-q").split()) == set(going))
    node("stop", *going)
    codes = node("wait", *names).split()
    assert codes == ["137" if name in both else str(n) for n, name in enumerate(names)]
    node("rm", *names)
    wait_until(lambda: not node.left())
