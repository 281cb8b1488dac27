"""containerd for cold starts: its own root, state, socket and process, nothing of the machine's
containerd.
"""

from __future__ import annotations

import shlex
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from support.network import Link
from support.processes import FirstOutput, Process, time_first_output

CONFIGURATION = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/containerd.sock"
"""
START_LIMIT_S = 20.0


class Containerd:
    """Pull the whole image, then run: what every node does today."""

    name = "containerd pull + run"

    def __init__(self, link: Link, folder: Path, reference: str, command: str) -> None:
        self._link = link
        self._folder = folder
        self._reference = reference
        self._command = command

    @staticmethod
    def missing() -> str | None:
        """The programs that are not there, or None."""
        absent = [name for name in ("containerd", "ctr", "runc") if shutil.which(name) is None]
        return ", ".join(absent) or None

    def start(self, registry: str) -> FirstOutput:
        """One cold start with an empty store; the daemon is up before the clock starts."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        configuration = self._folder / "config.toml"
        configuration.write_text(CONFIGURATION.format(folder=self._folder))
        daemon = self._link.on_client("containerd", "--config", str(configuration))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            stack.enter_context(Process(daemon, log=self._folder.with_suffix(".log")))
            self._wait_for_socket()
            return time_first_output(self._link.on_client("sh", "-c", self._script(registry)))

    def _script(self, registry: str) -> str:
        ctr = f"ctr --address {self._folder}/containerd.sock"
        image = f"{registry}/{self._reference}"
        run = f"{ctr} run --rm --runc-root {self._folder}/runc {image} cold {self._command}"
        return f"{ctr} image pull --plain-http {shlex.quote(image)} >/dev/null && exec {run}"

    def _wait_for_socket(self) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while not (self._folder / "containerd.sock").exists():
            if time.monotonic() > deadline_s:
                raise RuntimeError(
                    f"containerd did not start, see {self._folder.with_suffix('.log')}"
                )
            time.sleep(0.05)
