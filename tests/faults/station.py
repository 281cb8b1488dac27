"""One device, by the service or in the foreground: a mount, its readers, and whoever kills its
servers and fills its disk.

A station works in rounds.  Before each the node store is made new, or gets a fault while nobody
uses it; then a version of the image is mounted, reader processes start, and faults go on until the
round ends.  Whatever breaks the mount for good is mended as a user would: ``lamina mount`` again,
after ``lamina umount --lazy`` if need be.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina.linux.process import start_time_ticks
from tests.faults import old_files
from tests.faults.network import Network
from tests.faults.reading import Counts, Reading
from tests.faults.sample import Sample

ROOT = Path(__file__).parents[2]
READERS = 3
KILL_STEP_S = 0.025
"""How far apart the moments are, after a mount or a recovery, at which servers are killed."""

KILL_STEPS = 40
SERVICE = {"holder", "supervisor", "worker"}

HEAL_S = 3.0
"""How long a service may take to heal itself before it is mended from outside."""

MEND_S = 60.0
MEND_ATTEMPTS = 30
"""Half of what a registry answers is damaged; on a busy machine few attempts fit into a minute."""
UNMOUNT_S = 20.0
SILENT = "registry silent beyond the deadline"
DISK_BYTES = 48 << 20
COMMAND_S = 60.0
DEADLINE_S = 4
RETRY = f"deadline_s={DEADLINE_S},attempt_s=0.6,attempts=4,first_pause_s=0.01,max_pause_s=0.2"
SILENCE_S = 1.5 * DEADLINE_S
"""How long the registry says nothing: readers meet their deadline."""


@dataclass(frozen=True)
class Plan:
    """What all stations have in common."""

    network: Network
    samples: list[Sample]
    runtime: Path
    """Folder for the records of mounts."""
    seed: int
    hang_s: float
    stopped: threading.Event
    round_s: float = 3.0
    has_fanotify: bool = True
    killing: threading.Lock = field(default_factory=threading.Lock)
    local: bool = True
    """Whether anything but the network gets faults."""


FOREGROUND = " --foreground"


class Station:
    """Everything that belongs to one device and way of serving, as ``fuse`` or
    ``fuse --foreground``.
    """

    def __init__(self, device: str, folder: Path, plan: Plan) -> None:
        self.device = device
        self._servers: list[subprocess.Popen[str]] = []
        self.folder = folder
        self.plan = plan
        self.counts = Counts()
        self.chance = random.Random(f"station {plan.seed} {device}")
        self.mountpoint = folder / "mnt"
        self.disk = folder / "disk"
        self.store = self.disk / "store"
        self.rounds = 0
        self.readers_started = 0
        self.sample = plan.samples[0]
        self._sweep = 0
        self._silent_s = 0.0
        self._readers: list[Reading] = []
        self._loop = False
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "LAMINA_STORE": str(self.store),
            "LAMINA_RUNTIME": str(plan.runtime / device.replace(" ", "")),
            "LAMINA_RETRY": RETRY,
            "DOCKER_CONFIG": str(folder / "no-docker-config"),
        }

    @property
    def has_read(self) -> bool:
        """Whether a round is over, and one in which something was read: the registry may have been
        silent for all of the first.
        """
        return bool(self.rounds and self.counts.reads)

    def run(self, *, with_disk: bool) -> None:
        """Work until the plan is stopped."""
        self._prepare_mountpoint()
        self.disk.mkdir()
        try:
            if with_disk:
                self._make_disk()
            while not self.plan.stopped.is_set():
                self._round()
        except Exception as error:
            self.counts.crashes += 1
            self.counts.details.append({"device": self.device, "defect": repr(error)})
        finally:
            self._finish_readers()
            self._unmount()
            self._wait_for_servers()
            if self._loop:
                subprocess.run(["umount", "--lazy", self.disk], check=False)

    def _prepare_mountpoint(self) -> None:
        self.mountpoint.mkdir(parents=True)

    @property
    def _mounted_at(self) -> str:
        """What ``lamina mounts`` calls our folder."""
        return str(self.mountpoint)

    def _make_disk(self) -> None:
        image = self.folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image]
        subprocess.run(make, check=True)
        subprocess.run(["mount", "-o", "loop,noatime", image, self.disk], check=True)
        self._loop = True

    def _lamina(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lamina", *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S,
            check=False,
        )

    def _round(self) -> None:
        self._prepare_store()
        if self.chance.random() < 0.7:
            self.sample = self.chance.choice(self.plan.samples)
        if self.plan.local and self.rounds and self.chance.random() < 0.2:
            self._kill_mount()
        if not self._mend():
            return
        for _ in range(READERS):
            self.readers_started += 1
            name = f"tally-{self.readers_started}"
            seed = f"{self.plan.seed} {self.device} {self.readers_started}"
            reading = Reading(self.mountpoint, self.sample.tree, self.folder / name, seed)
            self._readers.append(reading)
        end = time.monotonic() + self.plan.round_s * self.chance.uniform(0.5, 1.5)
        self._silent_s = 0.0
        while time.monotonic() < end + self._silent_s and not self.plan.stopped.is_set():
            self._fault()
        self._finish_readers()
        self.rounds += 1
        self._unmount()

    def _prepare_store(self) -> None:
        """Make the store new, or break something in it."""
        kept = self.plan.local and self.store.exists() and self.chance.random() < 0.7
        if not kept:
            shutil.rmtree(self.store, ignore_errors=True)
            return
        for _ in range(self.chance.randrange(1, 4)):
            kind = self.chance.choice(list(old_files.FAULTS))
            if old_files.FAULTS[kind](self.store, self.chance):
                self.counts.injected[kind] += 1
        if self.chance.random() < 0.3 and old_files.damage_metadata(self.store, self.sample):
            self.counts.injected["damaged manifest"] += 1
        if self.chance.random() < 0.5 and old_files.damage_start(self.store, self.sample):
            self.counts.injected["damaged start artifact"] += 1

    def _fault(self) -> None:
        """Do one thing to the running mount."""
        draw = self.chance.random() if self.plan.local else 1.0
        if self.plan.local and (draw < 0.002 or not self.counts.injected[SILENT]):
            self._silence()
        elif draw < 0.15 and self._loop:
            self._fill_disk()
        elif draw < 0.7:
            self._sweep += 1
            self._wait(self._sweep * 7 % KILL_STEPS * KILL_STEP_S)
            self._kill()
        else:
            self._wait(0.5)

    def _wait(self, seconds: float) -> None:
        """Look for hangs for so long."""
        end = time.monotonic() + seconds
        while True:
            for reader in self._readers:
                if reader.is_hung(self.plan.hang_s):
                    self.counts.hangs += 1
                    self.counts.details.append({"device": self.device, "hang": reader.state()})
            if time.monotonic() >= end:
                return
            time.sleep(0.01)

    def _silence(self) -> None:
        """Have the registry say nothing, to anybody, for longer than a reader is made to wait."""
        self.plan.network.silence(SILENCE_S)
        self.counts.injected[SILENT] += 1
        self._wait(SILENCE_S)
        # Little is read meanwhile, so it is no part of the round.
        self._silent_s += SILENCE_S

    def _fill_disk(self) -> None:
        """Leave no free block for a while."""
        filler = self.disk / "filler"
        fd = os.open(filler, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for _ in range(3):
                status = os.statvfs(self.disk)
                free = status.f_bavail * status.f_frsize
                size = os.fstat(fd).st_size
                with contextlib.suppress(OSError):
                    os.posix_fallocate(fd, size, max(free, 4096))
            self.counts.injected["disk full"] += 1
            self._wait(0.7)
        finally:
            os.close(fd)
            filler.unlink()

    def _records(self) -> dict[str, Any] | None:
        """What ``lamina mounts`` says of our folder."""
        done = self._lamina("mounts", "--json")
        for line in done.stdout.splitlines():
            record: dict[str, Any] = json.loads(line)
            if record["mountpoint"] == self._mounted_at:
                return record
        return None

    def _pids(self) -> dict[str, int]:
        """The living processes of the mount by role; one without roles is the server."""
        self._reap()
        record = self._records()
        if record is None:
            return {}
        pids = record.get("pids") or {"server": record["pid"]}
        return {role: pid for role, pid in pids.items() if pid and start_time_ticks(pid)}

    def _kill(self) -> None:
        """Kill some of the servers in one call, and see that they come back."""
        # Stations share a service: what several kill at a time could be all of it.
        with self.plan.killing:
            pids = self._pids()
            if "server" in pids or pids.keys() >= SERVICE:
                self._kill_some(pids)
                self._wait_for_roles(set(pids))
        self._wait(self.chance.uniform(0, 0.05))
        self._mend()

    def _kill_some(self, pids: dict[str, int]) -> None:
        roles = sorted(pids)
        chosen = self.chance.sample(roles, self.chance.randrange(1, len(roles) + 1))
        if self.plan.has_fanotify and set(chosen) >= SERVICE:
            # Without any holder of the group Linux lets its readers through: not to be survived.
            chosen.remove(self.chance.choice(sorted(SERVICE)))
        for role in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pids[role], signal.SIGKILL)
        self.counts.injected[f"kill -9 {' + '.join(sorted(chosen))}"] += 1

    def _wait_for_roles(self, roles: set[str]) -> None:
        """Wait until a service has all its processes again; others do not come back."""
        end = time.monotonic() + HEAL_S
        while roles >= SERVICE and time.monotonic() < end and not self._pids().keys() >= SERVICE:
            self._wait(0.02)

    def _mend(self) -> bool:
        """Wait until the mount is served; mount it (again) if it does not come back by itself."""
        begin = time.monotonic()
        said = ""
        attempts = 0
        while time.monotonic() < begin + MEND_S or attempts < MEND_ATTEMPTS:
            self._wait(0)
            record = self._records()
            if record is not None and record["state"] == "served":
                return True
            healing = record is not None and "pids" in record
            if healing and time.monotonic() < begin + HEAL_S:
                continue
            done = self._mount()
            attempts += 1
            if done.returncode == 0:
                return True
            said = done.stderr
            if "already" in said:
                self._lamina("umount", "--lazy", str(self.mountpoint))
            if self.plan.stopped.is_set():
                return False
        self.counts.crashes += 1
        self.counts.details.append({"device": self.device, "not mended": said[-500:]})
        return False

    def _mount(self) -> subprocess.CompletedProcess[str]:
        self.counts.mounts += 1
        words = self._mount_words()
        if not self.device.endswith(FOREGROUND):
            return self._lamina(*words)
        command = [sys.executable, "-m", "lamina", *words, "--json"]
        with (self.folder / "said").open("w+") as said:
            server = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=said, text=True, env=self._environment
            )
            assert server.stdout is not None
            with server.stdout:
                is_mounted = bool(server.stdout.readline())
            if not is_mounted:
                server.wait(COMMAND_S)
            said.seek(0)
            words_said = said.read()
        self._servers.append(server)
        return subprocess.CompletedProcess(command, int(not is_mounted), "", words_said)

    def _reap(self) -> None:
        """Forget servers that have ended: whether one lives is asked of the process table."""
        self._servers = [server for server in self._servers if server.poll() is None]

    def _wait_for_servers(self) -> None:
        """A server in the foreground still writes down what it learnt when its mount is gone."""
        for server in self._servers:
            try:
                server.wait(UNMOUNT_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
                self.counts.crashes += 1
                self.counts.details.append({"device": self.device, "did not end": server.args})

    @property
    def _reference(self) -> str:
        return f"docker://{self.plan.network.host}/faults@{self.sample.digest}"

    def _store_words(self) -> list[str]:
        if not self.device.startswith("fanotify") and self.chance.random() < 0.5:
            return ["--store-budget", "4M"]
        return []

    def _mount_words(self) -> list[str]:
        device, foreground, _ = self.device.partition(FOREGROUND)
        words = ["--device", device, self._reference, str(self.mountpoint)]
        if foreground:
            words = [foreground.strip(), *words]
        return ["-q", "mount", *self._store_words(), *words]

    def _kill_mount(self) -> None:
        """Kill ``lamina mount`` itself, somewhere on its way."""
        command = [sys.executable, "-m", "lamina", *self._mount_words()]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=self._environment, **quiet) as process:
            self._wait_a_step()
            process.kill()
        self.counts.injected["kill -9 lamina mount"] += 1

    def _wait_a_step(self) -> None:
        self._wait(self.chance.randrange(KILL_STEPS) * KILL_STEP_S)

    def _finish_readers(self) -> None:
        for reader in self._readers:
            reader.process.terminate()
        while self._readers:
            self._readers.pop().finish(self.plan.hang_s, self.counts, self.device)

    def _unmount(self) -> None:
        end = time.monotonic() + UNMOUNT_S
        words: tuple[str, ...] = ()
        while (record := self._records()) is not None:
            if record["state"] != "detached":
                self._lamina("umount", *words, str(self.mountpoint))
            if time.monotonic() > end:
                self.counts.crashes += 1
                self.counts.details.append({"device": self.device, "not unmounted": record})
                return
            words = ("--lazy",)
