"""How fast many tiny files of a mounted image are read, against one file of the same size.

Each case mounts an image anew (``--foreground``, so that nothing of another one serves it), from a
folder: with nothing here yet, filled while it was mounted and with the page cache dropped, and with
all here before it was mounted and the page cache dropped.  Cases take turns; with ``--before SRC``
so does another source tree of Lamina.  The bar is 1.5 times the large file, and 30 µs a file.
Needs root.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.processes import Process, drop_caches
from support.single_layer import push_layer

from support import report
from support.serving import lamina

ROOT = Path(__file__).resolve().parents[1]
SHARE, FILE_S = 1.5, 30e-6
STATES = ("nothing here", "filled while mounted", "all here")
MOUNT_LIMIT_S = 60.0


class Case(NamedTuple):
    """A source tree of Lamina that serves an image by a device."""

    tree: str
    source: Path
    device: str
    image: str


def main() -> int:
    """Measure and print the table; returns 1 if a bar is missed."""
    options = _parse()
    if os.geteuid() != 0:
        print("small_files: needs root to mount", file=sys.stderr)
        return 2
    print(report.describe_machine())
    trees = {"now": ROOT / "src"} | ({"before": options.before} if options.before else {})
    devices = options.devices.split(",")
    with tempfile.TemporaryDirectory(prefix="lamina-small-") as name:
        folder = Path(name)
        _make_images(folder, options.files)
        cases = [
            Case(tree, source, device, image)
            for device in devices
            for tree, source in trees.items()
            for image in ("small", "large")
        ]
        found: dict[Case, dict[str, list[float]]] = {
            case: {state: [] for state in STATES} for case in cases
        }
        for number in range(options.rounds):
            for case in cases if number % 2 == 0 else cases[::-1]:
                for state, passed_s in _measure(case, folder).items():
                    found[case][state].append(passed_s)
    missed = _print(found, options.files)
    if options.json:
        results = {
            f"{case.tree} {case.device} {case.image}": times for case, times in found.items()
        }
        settings = {"files": options.files, "rounds": options.rounds}
        report.write_json(options.json, "small_files", settings, results)
    return int(missed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--devices", default="fuse-blob,fanotify", help="(fuse-blob,fanotify)")
    parser.add_argument("--before", type=Path, help="source folder of another version")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _make_images(folder: Path, count: int) -> None:
    """Images ``small`` and ``large`` of the same content, in files of 200 to 2000 bytes and one."""
    random.seed(1)
    words = [hashlib.sha256(b"%d" % n).hexdigest()[: random.randint(3, 12)] for n in range(4000)]
    data = [
        " ".join(random.choices(words, k=400)).encode()[: random.randint(200, 2000)]
        for _ in range(count)
    ]
    small = [(f"d{number // 100:03d}/f{number:06d}", each) for number, each in enumerate(data)]
    for name, files in (("small", small), ("large", [("all", b"".join(data))])):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, content in files:
                info = tarfile.TarInfo(path)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        push_layer(f"oci:{folder}/plain:{name}", buffer.getvalue())
        lamina("convert", "--quiet", f"oci:{folder}/plain:{name}", f"oci:{folder}/native:{name}")


def _measure(case: Case, folder: Path) -> dict[str, float]:
    """Seconds that reading all takes, by what was here."""
    store = folder / "store"
    times = {}
    try:
        with _mounted(case, folder) as tree:
            drop_caches()
            times[STATES[0]] = _read_all(tree)
            drop_caches()
            times[STATES[1]] = _read_all(tree)
        with _mounted(case, folder) as tree:
            drop_caches()
            times[STATES[2]] = _read_all(tree)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return times


@contextmanager
def _mounted(case: Case, folder: Path) -> Iterator[Path]:
    point = folder / "mnt"
    point.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lamina", "mount", "--foreground", "--quiet"]
    command += ["--store", str(folder / "store"), "--device", case.device]
    command += [f"oci:{folder}/native:{case.image}", str(point)]
    environment = {"PYTHONPATH": str(case.source)}
    with Process(command, log=folder / "log", environment=environment):
        end_s = time.monotonic() + MOUNT_LIMIT_S
        while not os.path.ismount(point):
            if time.monotonic() > end_s:
                raise RuntimeError(f"nothing was mounted: {(folder / 'log').read_text()}")
            time.sleep(0.01)
        try:
            yield point
        finally:
            subprocess.run(["umount", point], check=True)


def _read_all(tree: Path) -> float:
    """Seconds to open, read and close every file, by a process that listed them before."""
    program = (
        "import os, sys, time\n"
        "paths = sorted(os.path.join(here, name) for here, _, names in os.walk(sys.argv[1]) "
        "for name in names)\n"
        "paths = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]\n"
        "buffers = [bytearray(128 << 10)]\n"
        "start_s = time.perf_counter()\n"
        "for path in paths:\n"
        "    fd = os.open(path, os.O_RDONLY)\n"
        "    while os.readv(fd, buffers): pass\n"
        "    os.close(fd)\n"
        "print(time.perf_counter() - start_s)\n"
    )
    command = [sys.executable, "-c", program, str(tree)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _print(found: dict[Case, dict[str, list[float]]], files: int) -> bool:
    """Print a row a case and state; return whether a bar of ours is missed."""
    rows, missed = [], False
    for case, times in found.items():
        if case.image != "small":
            continue
        large = found[case._replace(image="large")]
        for state in STATES:
            here_s, large_s = report.median(times[state]), report.median(large[state])
            bar_s = SHARE * large_s + files * FILE_S
            missed |= case.tree == "now" and here_s > bar_s
            rows.append(
                [
                    f"{case.device}, {case.tree}: {state}",
                    report.spread(times[state], " s"),
                    report.spread(large[state], " s"),
                    f"{bar_s:.2f} s" + (", missed" if here_s > bar_s else ""),
                ]
            )
    report.print_table(["", f"{files} files", "one file", "bar"], rows)
    return missed


if __name__ == "__main__":
    sys.exit(main())
