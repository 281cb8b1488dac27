"""How long a reader waits when what serves its mount is killed or upgraded, and what serving costs.

``tar c`` reads a lazily mounted image from a docker-registry on loopback that answers late, while
processes of the mount service are killed with SIGKILL at fixed intervals, or the service is
upgraded.  The stall is the longest time between two reads of tar's output; every run's output must
be the same bytes.  Then ten mounts are made, read in part, and the memory of the service is taken
from ``/proc``.  Needs root and docker-registry.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from support.processes import Process
from support.registry import loopback_registry

from lamina.serve.service.client import service_status, upgrade_service
from support import images, report
from support.serving import lamina

REPOSITORY = "bench/takeover"
REGISTRY_PORT = 5198
PROXY_PORT = 5197
DEVICES = ("fanotify", "fuse-blob", "fuse")
EVENTS = ("nothing", "worker", "supervisor", "supervisor+worker", "holder+supervisor", "upgrade")
PAUSE_S = 0.5
STALL_BAR_S = 0.5
MOUNTS = 10
MEMORY_BAR_MIB = 150
READ_OF_EACH = 200
"""Files of each mount that are read before memory is looked at."""


class Reading(NamedTuple):
    """One run of tar."""

    digest: str
    stall_s: float
    took_s: float
    events: int


def main() -> int:
    """Run everything; returns 1 if a bar is missed."""
    options = _parse()
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-takeover-")))
        os.environ["LAMINA_RUNTIME"] = str(folder / "run")
        os.environ["LAMINA_STORE"] = str(folder / "store")
        (folder / "run").mkdir(mode=0o700)
        (folder / "mnt").mkdir()
        reference = served_late(stack, folder, options)
        print(report.describe_machine())
        missed = _stalls(folder, reference, options.rounds, results)
        missed |= _memory(folder, reference, results)
    if options.json:
        report.write_json(options.json, "takeover", {"rtt_ms": options.rtt_ms}, results)
    return missed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rtt-ms", type=float, default=5.0)
    parser.add_argument("--image", default="minbase", help="as of the other benchmarks (minbase)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def served_late(stack: ExitStack, folder: Path, options: argparse.Namespace) -> str:
    """Serve the image by a registry that answers late, until the stack is closed."""
    stack.enter_context(loopback_registry(folder, REGISTRY_PORT))
    delay = str(Path(__file__).with_name("support") / "delay.py")
    ports = [str(PROXY_PORT), str(REGISTRY_PORT), str(options.rtt_ms)]
    log = folder / "delay.log"
    stack.enter_context(Process([sys.executable, "-u", delay, *ports], log=log, ready="ready"))
    image = images.image_layout(options.image)
    where = f"127.0.0.1:{REGISTRY_PORT}/{REPOSITORY}:latest"
    lamina("convert", "--quiet", f"oci:{image}:latest", f"docker://{where}")
    return f"docker://127.0.0.1:{PROXY_PORT}/{REPOSITORY}:latest"


def _stalls(folder: Path, reference: str, rounds: int, results: dict[str, Any]) -> int:
    rows, missed, digests = [], 0, set()
    for device in DEVICES:
        for event in EVENTS:
            readings = [_read(folder, reference, device, event) for _ in range(rounds)]
            digests |= {reading.digest for reading in readings}
            stall_s = max(reading.stall_s for reading in readings)
            missed |= stall_s > STALL_BAR_S
            results[f"{device} {event}"] = [reading._asdict() for reading in readings]
            events = sum(reading.events for reading in readings)
            took = report.spread([reading.took_s for reading in readings], " s")
            rows.append((device, event, str(events), f"{stall_s:.3f} s", took))
    report.print_table(("device", "what happens", "times", "longest stall", "tar"), rows)
    print(f"different outputs: {len(digests)} (must be 1); bar of a stall: {STALL_BAR_S} s")
    return missed | (len(digests) != 1)


def _read(folder: Path, reference: str, device: str, event: str) -> Reading:
    shutil.rmtree(folder / "store", ignore_errors=True)
    mountpoint = folder / "mnt"
    lamina("mount", "--quiet", "--device", device, reference, str(mountpoint))
    try:
        return read_tar(["tar", "c", "--sort=name", "-C", str(mountpoint), "."], event)
    finally:
        lamina("umount", "--quiet", str(mountpoint))


def read_tar(command: Sequence[str], event: str) -> Reading:
    """Read what a command writes; from its first byte on it is timed, and *event* happens."""
    stall_s = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        digest = hashlib.sha256(os.read(tar.stdout.fileno(), 1 << 16))
        with _meanwhile(event) as count:
            begin = last = time.monotonic()
            while part := os.read(tar.stdout.fileno(), 1 << 16):
                now = time.monotonic()
                stall_s, last = max(stall_s, now - last), now
                digest.update(part)
    if tar.returncode:
        raise RuntimeError(f"tar ended with {tar.returncode}")
    return Reading(digest.hexdigest(), stall_s, time.monotonic() - begin, count())


@contextmanager
def _meanwhile(event: str) -> Iterator[Callable[[], int]]:
    """Make ``event`` happen again and again; yields how often it did."""
    stop = threading.Event()
    times: list[float] = []

    def run() -> None:
        while event != "nothing" and not stop.wait(PAUSE_S):
            _happen(event)
            times.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: len(times)
    finally:
        stop.set()
        thread.join()


def _happen(event: str) -> None:
    if event == "upgrade":
        upgrade_service()
        return
    status = service_status()
    if status is None:
        return
    for role in event.split("+"):
        with suppress(ProcessLookupError):
            os.kill(status.pids[role], signal.SIGKILL)


def _memory(folder: Path, reference: str, results: dict[str, Any]) -> int:
    # With an empty store, or the mounts need no service.
    shutil.rmtree(folder / "store", ignore_errors=True)
    points = [folder / f"mnt{number}" for number in range(MOUNTS)]
    for point in points:
        point.mkdir()
        lamina("mount", "--quiet", "--device", "fuse-blob", reference, str(point))
    try:
        for point in points:
            _read_some(point)
        status = service_status()
        assert status is not None
        memory = {role: _rss_mib(pid) for role, pid in status.pids.items()}
    finally:
        lamina("umount", "--quiet", *map(str, points))
    total = memory["supervisor"] + memory["worker"]
    results["memory_mib"] = memory
    words = ", ".join(f"{role} {mib:.0f}" for role, mib in memory.items())
    print(f"RSS in MiB with {MOUNTS} mounts: {words}; supervisor and worker {total:.0f}")
    print(f"bar: {MEMORY_BAR_MIB} MiB")
    return int(total > MEMORY_BAR_MIB)


def _read_some(point: Path) -> None:
    left = READ_OF_EACH
    for folder, _, names in os.walk(point):
        for name in names[:left]:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                path.read_bytes()
                left -= 1


def _rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
