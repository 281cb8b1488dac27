"""The command: devices side by side until enough faults have been injected, and the table."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.containers import RUN, ContainerStation
from tests.faults.network import faulty_network
from tests.faults.reading import Counts
from tests.faults.sample import Sample, make_samples
from tests.faults.station import DEADLINE_S, FOREGROUND, SILENT, Plan, Station
from tests.faults.ways import WAYS

LONGEST_ROUND_S = 150.0
BY_SERVICE = ("fanotify", "fuse-blob", "fuse")
DEVICES = tuple(name + way for way in ("", FOREGROUND, RUN) for name in BY_SERVICE)


def main(arguments: Sequence[str]) -> int:
    """Run the suite; 0 if all bytes were right, nothing hung and there were enough faults."""
    options = parse(arguments)
    reason = unsupported()
    if reason is not None:
        print(f"the fault suite cannot run here: {reason}", file=sys.stderr)
        return 2
    result = run_suite(options)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        print(table(result))
    return 0 if passed(result) else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of all that is left to chance")
    parser.add_argument("--faults", type=int, default=0, help="stop after so many; 0: by time")
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long")
    parser.add_argument("--device", action="append", choices=DEVICES, help="may be repeated (all)")
    parser.add_argument("--rate", type=float, default=0.5, help="share of requests that are hit")
    parser.add_argument(
        "--hang",
        type=float,
        default=DEADLINE_S + 10,
        help="a read of so many seconds hangs: its deadline and 10 more",
    )
    parser.add_argument("--bytes", type=float, default=0, help="fail if fewer are compared")
    parser.add_argument("--round", type=float, default=3, help="seconds between two mounts")
    parser.add_argument("--only", metavar="KIND", help="the one fault there is, of the network")
    parser.add_argument(
        "--early", action="store_true", help="mounts do not wait for the metadata layer"
    )
    parser.add_argument(
        "--flip-source", action="store_true", help="change the plain trees: the run must fail then"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    return parser.parse_args(arguments)


def unsupported() -> str | None:
    """Why no device can be mounted here, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    release = tuple(int("".join(filter(str.isdigit, n))) for n in platform.release().split(".")[:2])
    if release < (6, 14):
        return f"fanotify needs Linux 6.14, this is {platform.release()}"
    if shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        return "containers need runc"
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        return "the kernel has no EROFS (modprobe erofs?)"
    return None


def can_mount_disks() -> bool:
    """Whether file systems in files can be made and mounted."""
    return shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None and (
        Path("/dev/loop-control").exists()
    )


def run_suite(options: argparse.Namespace) -> dict[str, Any]:
    """Run, and return all that was counted."""
    with (
        tempfile.TemporaryDirectory(prefix="lamina-faults-") as name,
        faulty_network(options.seed, options.rate) as network,
    ):
        folder = Path(name)
        samples = make_samples(network, folder / "trees", options.seed, early=options.early)
        network.only = options.only
        if options.flip_source:
            flip_source(samples)
        (folder / "run").mkdir(mode=0o700)
        plan = Plan(
            network,
            samples,
            folder / "run",
            options.seed,
            options.hang,
            threading.Event(),
            options.round,
            has_fanotify=any("fanotify" in each for each in options.device or DEVICES),
            local=options.only is None,
        )
        stations = [
            (ContainerStation if device.endswith(RUN) else Station)(
                device, folder / device.replace(" ", ""), plan
            )
            for device in options.device or DEVICES
        ]
        begin = time.monotonic()
        with working(stations, plan.stopped):
            end = begin + options.seconds
            # On a busy machine a short run waits until something was read of each device.
            while time.monotonic() < end or not all(each.has_read for each in stations):
                time.sleep(0.2)
                if time.monotonic() > end + LONGEST_ROUND_S:
                    break
                injected = sum(network.injected.values())
                injected += sum(sum(each.counts.injected.values()) for each in stations)
                compared = sum(each.counts.bytes for each in stations)
                enough = injected >= options.faults and compared >= options.bytes
                if options.faults and enough and all(each.has_read for each in stations):
                    break
        took_s = time.monotonic() - begin
        return report(options, stations, Counter(network.injected), network.requests, took_s)


def flip_source(samples: Sequence[Sample]) -> None:
    """Change one bit of each block of each file, so that what is served right is wrong."""
    for sample in samples:
        for path in filter(Path.is_file, sample.tree.rglob("*")):
            content = bytearray(path.read_bytes())
            for block in range(0, len(content), 4096):
                content[block] ^= 1
            path.write_bytes(content)


@contextlib.contextmanager
def working(stations: Sequence[Station], stopped: threading.Event) -> Iterator[None]:
    """Run the stations in the background until the block ends."""
    with_disk = can_mount_disks()
    threads = [
        threading.Thread(target=each.run, kwargs={"with_disk": with_disk}) for each in stations
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def report(
    options: argparse.Namespace,
    stations: Sequence[Station],
    injected: Counter[str],
    requests: int,
    took_s: float,
) -> dict[str, Any]:
    """All counts as JSON."""
    total = Counts()
    for station in stations:
        total.add(station.counts)
    injected += total.injected
    return {
        "seed": options.seed,
        "devices": [station.device for station in stations],
        "seconds": round(took_s, 1),
        "wanted_faults": options.faults,
        "wanted_bytes": options.bytes,
        "faults": sum(injected.values()),
        "injected": dict(injected.most_common()),
        "requests": requests,
        "mounts": total.mounts,
        "reads": total.reads,
        "bytes": total.bytes,
        "wrong": total.wrong,
        "hangs": total.hangs,
        "crashes": total.crashes,
        "longest_s": round(total.longest_s, 2),
        "by_way": {way: total.by_way[way] for way in WAYS},
        "impossible": dict(+total.impossible),
        "errors": {errno.errorcode.get(n, str(n)): c for n, c in total.errors.most_common()},
        "by_device": {
            station.device: {
                "reads": station.counts.reads,
                "wrong": station.counts.wrong,
                "hangs": station.counts.hangs,
                "silences": station.counts.injected[SILENT],
                "errors": sum(station.counts.errors.values()),
                "longest_s": round(station.counts.longest_s, 2),
            }
            for station in stations
        },
        "details": total.details[:50],
    }


def passed(result: dict[str, Any]) -> bool:
    """Whether the run is a success."""
    bad = result["wrong"] + result["hangs"] + result["crashes"]
    enough = all(result[name] >= result[f"wanted_{name}"] for name in ("faults", "bytes"))
    return not bad and result["reads"] > 0 and enough


def table(result: dict[str, Any]) -> str:
    """The counts for people."""
    devices = ", ".join(result["devices"])
    lines = [
        f"seed {result['seed']}, {devices}, {result['seconds']} s, {result['mounts']} mounts",
        "",
        f"{'requests to the registry':<44}{result['requests']:>9}",
        f"{'faults injected':<44}{result['faults']:>9}",
    ]
    lines += [f"  {kind:<42}{count:>9}" for kind, count in result["injected"].items()]
    lines += [
        f"{'reads made':<44}{result['reads']:>9}",
        *(f"  by {way:<39}{count:>9}" for way, count in result["by_way"].items()),
        *(f"  no {way} here{'':<31}" for way in result["impossible"]),
        f"{'bytes compared':<41}{result['bytes']:>12}",
        f"{'reads that ended with an error':<44}{sum(result['errors'].values()):>9}",
    ]
    lines += [f"  {name:<42}{count:>9}" for name, count in result["errors"].items()]
    lines += [
        f"{'longest read, seconds':<44}{result['longest_s']:>9}",
        f"{'wrong bytes':<44}{result['wrong']:>9}",
        f"{'reads without an answer in time (hangs)':<44}{result['hangs']:>9}",
        f"{'crashes':<44}{result['crashes']:>9}",
    ]
    lines += [f"  {name}: {counts}" for name, counts in result["by_device"].items()]
    lines += [json.dumps(detail) for detail in result["details"]]
    return "\n".join(lines)
