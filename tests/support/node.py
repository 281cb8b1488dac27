"""A node of a cluster on one machine: containerd with CRI, Lamina's snapshotter, ``ctr`` and
``crictl``, with folders, sockets and processes of their own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.support.leaks import mounts_below

ROOT = Path(__file__).parents[2]
NAME = "lamina"
DEADLINE_S = 120

PAGE = ROOT / "docs/how-to/containerd.md"
BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_AWAY = (
    "code = Unavailable",
    ": unavailable",
    "connection error",
    "transport is closing",
    "reading from server",
)
"""What containerd says while it has not connected again."""
_LATE = ("code = DeadlineExceeded", "please stop it first")
_ENDING = "ttrpc: closed"
"""What containerd 1.6 says of a container that ends by itself while it is being stopped."""

OWN_PLACES = """\
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
"""
SOCKETS = """
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
"""
PODS_1 = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/cni/bin"
    conf_dir = "{folder}/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{folder}/runc"
"""

PODS_2 = """
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{folder}/cni/bin"]
    conf_dir = "{folder}/cni/conf"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      Root = "{folder}/runc"
"""


class Programs(NamedTuple):
    """Where the programs of a node are; ``path`` comes first for what containerd starts itself.

    ``block`` is which configuration of the how-to containerd has, and ``pods`` what is added for
    pods on this machine.
    """

    containerd: str
    ctr: str
    crictl: str
    path: str = ""
    block: int = 0
    pods: str = PODS_1


class CommandError(Exception):
    """A command failed; its text is what was said."""


def is_away(error: CommandError) -> bool:
    """Tell whether a command failed because containerd had no connection to the snapshotter."""
    return any(each in str(error) for each in _AWAY)


def is_ending(error: CommandError) -> bool:
    """Tell whether a container could not be stopped because it ended meanwhile."""
    return _ENDING in str(error)


class Node:
    """Processes are started and stopped one by one; all are ended with it."""

    def __init__(self, folder: Path, programs: Programs, pause: str) -> None:
        self.folder = folder
        self.programs = programs
        self._pause = pause
        self.namespaces: dict[str, Any] = {"network": 2}
        """Of pods and their containers: ``NamespaceOption`` of CRI."""
        self._moment = folder / "moment"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "LAMINA_STORE": str(folder / "store"),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "PATH": f"{programs.path}:{os.environ['PATH']}",
        }

    # Processes

    def start_snapshotter(self, *options: str) -> None:
        """Start it, and wait until it listens; :meth:`kill_in` can end it."""
        words = ["--root", str(self.folder / "snapshots"), "--socket", str(self.folder / "l.sock")]
        program = ["-m", "tests.support.dying_snapshotter", str(self._moment)]
        self._start("snapshotter", [sys.executable, *program, "-v", *words, *options])
        self._wait_for("snapshotter", self._listens)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(f"{self.folder}/l.sock") == 0

    def kill_in(self, moment: str) -> None:
        """Have the snapshotter killed in its next call of a kind: ``dying_snapshotter.MOMENTS``."""
        fresh = self._moment.with_suffix(".new")
        fresh.write_text(moment)
        fresh.rename(self._moment)

    def wait_until_killed(self) -> None:
        """Wait until that has happened."""
        assert self._processes.pop("snapshotter").wait(DEADLINE_S) == -signal.SIGKILL

    def start_containerd(self) -> None:
        """Start it with the configuration of the how-to, and wait until its CRI answers."""
        config = self.folder / "config.toml"
        page = BLOCK.findall(PAGE.read_text())[self.programs.block]
        page = page.replace("/run/lamina-snapshotter/snapshotter.sock", f"{self.folder}/l.sock")
        page = page.replace("/run/lamina/layers", f"{self.folder}/layers")
        own = (part.format(folder=self.folder, pause=self._pause) for part in self._own_parts())
        first, *others = own
        config.write_text("\n".join((first, page, *others)))
        self._start("containerd", [self.programs.containerd, "-c", str(config)])
        self._wait_for("containerd", self._answers)

    def _own_parts(self) -> tuple[str, ...]:
        return OWN_PLACES, SOCKETS, self.programs.pods

    def _answers(self) -> bool:
        """Tell whether CRI is there; without a client for it, whether anything is."""
        with contextlib.suppress(CommandError):
            if self.programs.crictl:
                self.crictl("info")
            else:
                self.ctr("version")
            return True
        return False

    def _start(self, name: str, command: Sequence[str]) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )

    def _wait_for(self, name: str, ready: Any) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not ready():
            if self._processes[name].poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{name} does not start:\n{self.log(name)[-3000:]}")
            time.sleep(0.02)

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        """End a process by a signal, and return its exit code."""
        process = self._processes.pop(name)
        process.send_signal(number)
        return process.wait(DEADLINE_S)

    def pid(self, name: str) -> int:
        """Return the process id of one that runs."""
        return self._processes[name].pid

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    # Commands

    def run(self, *words: str, timeout: float = DEADLINE_S) -> str:
        """Run a command, and return what it prints.  Raises CommandError."""
        done = subprocess.run(
            words, capture_output=True, timeout=timeout, text=True, env=self.environment
        )
        if done.returncode:
            raise CommandError(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def ctr(self, *words: str, namespace: str = "default") -> str:
        """Run ``ctr``."""
        return self.run(self.programs.ctr, "-a", f"{self.folder}/c.sock", "-n", namespace, *words)

    def crictl(self, *words: str) -> str:
        """Run ``crictl``."""
        address = f"unix://{self.folder}/c.sock"
        return self.run(self.programs.crictl, "-t", "60s", "-r", address, "-i", address, *words)

    def patiently(self, *words: str) -> str:
        """Run ``crictl`` as a kubelet does: again, as long as containerd has not yet noticed that
        the snapshotter is back.
        """
        return self._again(lambda: self.crictl(*words))

    def wait_until_connected(self) -> None:
        """Wait until containerd has noticed that the snapshotter is back."""
        snapshots = ("snapshots", "--snapshotter", NAME)
        self._again(lambda: self.ctr(*snapshots, "prepare", "connected"))
        self.ctr(*snapshots, "rm", "connected")

    def _again(
        self,
        command: Callable[[], str],
        passes: Callable[[CommandError], bool] = is_away,
        patience_s: float = 60,
    ) -> str:
        """Run a command until it ends otherwise than by what ``passes``, as long as that."""
        deadline_s = time.monotonic() + patience_s
        while True:
            try:
                return command()
            except CommandError as error:
                if not passes(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)

    def lamina(self, *words: str) -> str:
        """Run ``lamina``."""
        return self.run(sys.executable, "-m", "lamina", *words)

    # Pods

    def pod_file(self, name: str) -> str:
        """Return the file that describes a pod in the network of the machine."""
        return self._write(
            f"{name}.pod.json",
            {
                "metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 1},
                "log_directory": str(self.folder / "logs"),
                "linux": {
                    "cgroup_parent": f"/lamina-{self.folder.name}",
                    "security_context": {"namespace_options": self.namespaces},
                },
            },
        )

    def run_pod(self, name: str) -> str:
        """Start a pod, and return its id."""
        return self.patiently("runp", self.pod_file(name)).strip()

    def creation(self, pod: str, name: str, image: str, *command: str) -> list[str]:
        """Return the words of ``crictl`` that make a container in a pod."""
        config = self._write(
            f"{name}.json",
            {
                "metadata": {"name": name, "attempt": 1},
                "image": {"image": image},
                "command": list(command),
                "log_path": f"{name}.log",
                "linux": {"security_context": {"namespace_options": self.namespaces}},
            },
        )
        return ["create", "--no-pull", pod, config, self._pod_of(pod)]

    def create(self, pod: str, name: str, image: str, *command: str) -> str:
        """Make a container in a pod, and return its id."""
        return self.patiently(*self.creation(pod, name, image, *command)).strip()

    def start(self, pod: str, name: str, image: str, *command: str) -> str:
        """Make and start a container in a pod, and return its id."""
        container = self.create(pod, name, image, *command)
        self.patiently("start", container)
        return container

    def _pod_of(self, pod: str) -> str:
        name = json.loads(self.crictl("inspectp", pod))["status"]["metadata"]["name"]
        return str(self.folder / f"{name}.pod.json")

    def _write(self, name: str, value: Mapping[str, Any]) -> str:
        path = self.folder / name
        path.write_text(json.dumps(value))
        return str(path)

    def wait_for_log(self, name: str, text: str) -> str:
        """Wait until a container has printed a text, and return all that it has."""
        path = self.folder / "logs" / f"{name}.log"
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(FileNotFoundError):
                if text in (found := path.read_text()):
                    return found
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{name} did not print {text!r}: {self.log('containerd')}")
            time.sleep(0.02)

    def remove_container(self, container: str) -> None:
        """End a container at once, and remove it, as a kubelet does: again also when it took too
        long, since containerd takes many down one after the other on some machines.
        """

        def remove() -> str:
            self.crictl("stop", "-t", "0", container)
            return self.crictl("rm", container)

        self._again(
            remove,
            lambda error: is_away(error) or any(each in str(error) for each in _LATE),
            patience_s=900,
        )

    def remove_pods(self) -> None:
        """End and remove all pods, as a kubelet does: what is ending by itself it stops again."""
        for pod in self.crictl("pods", "-q").split():
            self._again(functools.partial(self.crictl, "stopp", pod), is_ending)
            self.crictl("rmp", pod)

    def remove_images(self) -> None:
        """Remove all images of CRI, by their digests."""
        for image in self.crictl("images", "-q").split():
            self.crictl("rmi", image)

    # What is left

    def snapshots(self) -> list[str]:
        """Return the folders of snapshots and of trees."""
        root = self.folder / "snapshots"
        return sorted(
            str(each.relative_to(root)) for kind in ("s", "t") for each in (root / kind).iterdir()
        )

    def wait_until_clean(self) -> None:
        """Wait until containerd has collected everything: no snapshot, no tree, no mount.

        What it could not collect while the snapshotter was away it looks at again only when it
        removes another snapshot, so it gets one, and a lease that goes to make it do so now.
        """
        deadline_s = time.monotonic() + 120
        while left := [*self.snapshots(), *mounts_below(self.folder / "snapshots")]:
            if time.monotonic() > deadline_s:
                raise AssertionError(f"left behind: {left}\n{self.log('snapshotter')}")
            self.wait_until_connected()
            self._again(lambda: self.ctr("leases", "create", "--id", "change"))
            self._again(lambda: self.ctr("leases", "delete", "--sync", "change"))

    def close(self) -> None:
        """End all processes, whatever state they are in."""
        daemon = self._processes.get("containerd")
        if self.programs.crictl and daemon is not None and daemon.poll() is None:
            with contextlib.suppress(CommandError, subprocess.TimeoutExpired):
                self.remove_pods()
        for name in list(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(name)
        for point in mounts_below(self.folder):
            subprocess.run(["umount", "-l", point], check=False)


N = TypeVar("N", bound=Node)


@contextlib.contextmanager
def node(programs: Programs, pause: str, kind: type[N] = Node) -> Iterator[N]:
    """A node whose folder has a short path: a socket's has little room."""
    folder = Path(tempfile.mkdtemp(prefix="ln-", dir="/tmp"))
    try:
        made = kind(folder, programs, pause)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
