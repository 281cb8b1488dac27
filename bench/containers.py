"""What a second container of an image costs, and how long one waits when its servers are killed.

With all of the image on the node, and nothing of it in memory, a container starts, prints a line
and goes on; then a second one starts beside it.  Told are the second's time to its line over the
first's, with the service started by the first and with one that runs, and what the second adds to
the page cache (mincore over all files of the image) over what the first has there.  Then ``tar c``
reads an image that arrives in a container while processes of the service are killed: the stall is
the longest time between two reads of its output.  Devices take turns in each round.  Needs root,
runc and docker-registry.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from support.processes import drop_caches
from takeover import STALL_BAR_S, Reading, read_tar, served_late

from support import report
from support.serving import lamina

DEVICES: Final = ("fuse-blob", "fanotify", "fuse")
EVENTS: Final = ("nothing", "worker", "supervisor", "supervisor+worker")
RATIO_BAR: Final = 0.5
ADDED_BAR: Final = 0.05
SCRIPT: Final = "perl -MPOSIX -e 'print qq(ready\\n)'; read line"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Pair(NamedTuple):
    """Two containers of one image, one after the other, both running at the end."""

    first_s: float
    second_s: float
    first_pages: int
    added_pages: int


def main() -> int:
    """Run everything; returns 1 if a bar is missed."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-cont-")))
        os.environ["LAMINA_RUNTIME"] = str(folder / "run")
        os.environ["LAMINA_STORE"] = str(folder / "store")
        (folder / "run").mkdir(mode=0o700)
        reference = served_late(stack, folder, options)
        print(report.describe_machine())
        missed = _pairs(reference, options.rounds, results)
        missed |= _stalls(folder, reference, options.rounds, results)
    if options.json:
        report.write_json(options.json, "containers", {"rtt_ms": options.rtt_ms}, results)
    return missed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt-ms", type=float, default=5.0)
    parser.add_argument("--image", default="minbase", help="as of the other benchmarks (minbase)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _pairs(reference: str, rounds: int, results: dict[str, Any]) -> int:
    lamina("pull", "--resident", "--quiet", reference)
    found: dict[str, list[Pair]] = {}
    for _ in range(rounds):
        for device in DEVICES:
            for before in ("no service", "a service"):
                with _service(before == "a service"):
                    found.setdefault(f"{device}, {before}", []).append(_pair(reference, device))
    rows, missed = [], 0
    for name, pairs in found.items():
        ratio = report.median([each.second_s / each.first_s for each in pairs])
        added = max(each.added_pages / max(1, each.first_pages) for each in pairs)
        missed |= (ratio > RATIO_BAR and "no" in name) or added > ADDED_BAR
        first = report.spread([each.first_s for each in pairs], " s")
        second = report.spread([each.second_s for each in pairs], " s")
        pages = str(pairs[-1].first_pages)
        rows.append((name, first, second, f"{ratio:.2f}", pages, f"{added:.1%}"))
        results[name] = [each._asdict() for each in pairs]
    heads = ("device, before", "first", "second", "ratio", "pages of the first", "added")
    report.print_table(heads, rows)
    print(f"bars: ratio {RATIO_BAR} where the first starts the service, added {ADDED_BAR:.0%}")
    return missed


@contextlib.contextmanager
def _service(wanted: bool) -> Iterator[None]:
    """Have a service that runs, or none."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-m", "lamina", "service", "run"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as service:
        socket = Path(os.environ["LAMINA_RUNTIME"], "service.sock")
        while not socket.exists():
            time.sleep(0.01)
        try:
            yield
        finally:
            lamina("service", "stop")
            service.wait()


class _Container:
    """One that waits for the end of its input once it has said a line."""

    def __init__(self, reference: str, device: str, name: str) -> None:
        self.tree = Path(os.environ["LAMINA_RUNTIME"], "containers", name, "image")
        words = ["run", "--quiet", "--rm", "-i", "--name", name, "--device", device]
        command = [sys.executable, "-m", "lamina", *words, reference, "sh", "-c", SCRIPT]
        begin = time.monotonic()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the container {name} did not start")
        self.took_s = time.monotonic() - begin

    def close(self) -> None:
        self._process.communicate()


def _pair(reference: str, device: str) -> Pair:
    drop_caches()
    with ExitStack() as stack:
        first = _Container(reference, device, f"bench-{os.getpid()}-first")
        stack.callback(first.close)
        before = _resident_pages(first.tree)
        second = _Container(reference, device, f"bench-{os.getpid()}-second")
        stack.callback(second.close)
        after = _resident_pages(second.tree)
        is_shared = first.tree.stat().st_dev == second.tree.stat().st_dev
        return Pair(first.took_s, second.took_s, before, after - before if is_shared else after)


def _resident_pages(tree: Path) -> int:
    """How many pages of the files of a tree the kernel has, without reading any."""
    total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                total += _pages_of(path)
    return total


def _pages_of(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    vector = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector):
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(each & 1 for each in vector)


def _stalls(folder: Path, reference: str, rounds: int, results: dict[str, Any]) -> int:
    rows, missed, digests = [], 0, set()
    readings: dict[tuple[str, str], list[Reading]] = {}
    for _ in range(rounds):
        for device in DEVICES:
            for event in EVENTS:
                shutil.rmtree(folder / "store", ignore_errors=True)
                words = ["run", "--quiet", "--rm", "--device", device, reference]
                words += ["tar", "c", "--sort=name", "-C", "/usr", "."]
                one = read_tar([sys.executable, "-m", "lamina", *words], event)
                readings.setdefault((device, event), []).append(one)
    for (device, event), each in readings.items():
        digests |= {one.digest for one in each}
        stall_s = max(one.stall_s for one in each)
        missed |= stall_s > STALL_BAR_S
        took = report.spread([one.took_s for one in each], " s")
        rows.append((device, event, str(sum(one.events for one in each)), f"{stall_s:.3f} s", took))
        results[f"{device} {event}"] = [one._asdict() for one in each]
    report.print_table(("device", "what is killed", "times", "longest stall", "took"), rows)
    print(f"different outputs: {len(digests)} (must be 1); bar of a stall: {STALL_BAR_S} s")
    return missed | (len(digests) != 1)


if __name__ == "__main__":
    sys.exit(main())
