"""A station whose readers read the image of a container, as ``lamina run`` has mounted it.

The mountpoint is a link to where that is, which leads there only once it is mounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.faults.station import COMMAND_S, UNMOUNT_S, Station
from tests.support.tools import find_program

RUN = " run"
SCRIPT = "echo ready; read line"
"""Ends when nobody is left who could write."""


class ContainerStation(Station):
    """Everything that belongs to one device and the containers that are run with it."""

    _process: subprocess.Popen[str] | None = None
    _name = "none"
    _started = 0

    def _prepare_mountpoint(self) -> None:
        self.folder.mkdir(parents=True)

    @property
    def _runtime(self) -> Path:
        return Path(self._environment["LAMINA_RUNTIME"])

    @property
    def _bundle(self) -> Path:
        return self._runtime / "containers" / self._name

    @property
    def _mounted_at(self) -> str:
        return str(self._bundle / "image")

    def _words(self) -> list[str]:
        """The command line of a container with a name of its own."""
        self._started += 1
        self._name = f"faults-{os.getpid()}-{self.device.replace(' ', '-')}-{self._started}"
        busybox = find_program("busybox")
        words = ["-q", "run", "--rm", "-i", "--name", self._name, *self._store_words()]
        words += ["--device", self.device.removesuffix(RUN)]
        words += ["-v", f"{busybox}:/faults/busybox:ro", "--entrypoint", "/faults/busybox"]
        return [sys.executable, "-m", "lamina", *words, self._reference, "sh", "-c", SCRIPT]

    def _mount(self) -> subprocess.CompletedProcess[str]:
        self._end_container()
        self.counts.mounts += 1
        command = self._words()
        with (self.folder / "said").open("w+") as said:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=self._environment,
            )
            assert process.stdout is not None
            is_running = process.stdout.readline() == "ready\n"
            if not is_running:
                self._end_container()
            said.seek(0)
            words_said = said.read()
        if is_running:
            link = self.folder / "link"
            link.symlink_to(self._mounted_at)
            link.rename(self.mountpoint)
        return subprocess.CompletedProcess(command, int(not is_running), "", words_said)

    def _end_container(self) -> None:
        """End it as a user would, and remove what is left of one whose processes were killed."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(COMMAND_S)
        if process.returncode is None:
            self.counts.crashes += 1
            self.counts.details.append({"device": self.device, "did not end": process.args})
            process.kill()
            process.wait()
        process.stdout.close()
        self._tidy_up()

    def _tidy_up(self) -> None:
        """Wait for who stays beside the container; with that killed as well its folder is left."""
        self._wait_for_its_end()
        delete = ["runc", "--root", self._runtime / "runtime", "delete", "--force", self._name]
        subprocess.run(delete, stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self._bundle, ignore_errors=True)

    def _wait_for_its_end(self) -> None:
        for _ in range(int(UNMOUNT_S / 0.05)):
            is_tidy = not self._bundle.exists() or not _pids_of(self._name)
            if is_tidy and self._records() is None:
                return
            self._wait(0.05)
        self.counts.crashes += 1
        self.counts.details.append({"device": self.device, "left": self._name})

    def _pids(self) -> dict[str, int]:
        pids = {role: pid for role, pid in super()._pids().items() if role != "server"}
        if self._process is not None and self._process.poll() is None:
            pids["run"] = self._process.pid
            others = [pid for pid in _pids_of(self._name) if pid != self._process.pid]
            if others:
                pids["beside"] = others[0]
        return pids

    def _unmount(self) -> None:
        self._end_container()

    def _kill_mount(self) -> None:
        """Kill ``lamina run`` itself, somewhere on its way."""
        self._end_container()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        words = self._words()
        with subprocess.Popen(
            words, env=self._environment, stdin=subprocess.PIPE, **quiet
        ) as process:
            self._wait_a_step()
            process.send_signal(signal.SIGKILL)
        self._tidy_up()
        self.counts.injected["kill -9 lamina run"] += 1


def _pids_of(name: str) -> list[int]:
    """The processes of Lamina that have a container's name among their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"lamina" in words and os.fsencode(name) in words:
                found.append(int(path.parent.name))
    return found
