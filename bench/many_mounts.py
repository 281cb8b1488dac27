"""What the last of many mounts costs: time of each, CPU and memory of the service.

One image is mounted on many folders by one service, without a reader, each by ``lamina mount`` as
the command does it but for the start of the interpreter, which would hide what grows.
On a busy machine CPU, of the client and of the processes of the service, says more than time does.
Memory is the proportional set size of the service's processes, as ``/proc/PID/smaps_rollup`` has
it.  Then ``lamina mounts --json`` must tell of every mount.  On device fanotify there are as many
mounts as fs.fanotify.max_user_groups allows.  Needs root.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lamina.errors import Error
from lamina.opening.request import OpenRequest
from lamina.serve.mounts import list_mounts, unmount
from lamina.serve.service.client import service_status
from lamina.serve.service.mounting import mount_by_service
from lamina.serve.service.spec import MountSpec
from support import images, report
from support.serving import lamina

DEVICES = ("fuse-blob", "fuse", "fanotify")
FIRST = 10
"""Of these the first are paid for all: the image is opened, the service is started."""
AROUND = 5
"""Times are medians of so many mounts."""
CPU_AROUND = 50
"""CPU is the mean of so many mounts, as the kernel counts it in ticks."""
TIME_BAR = 1.5
MEMORY_BAR_KIB = 100.0


def main() -> int:
    """Run everything; returns 1 if a bar is missed."""
    options = _parse()
    results: dict[str, Any] = {}
    rows, missed = [], 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-many-")))
        os.environ["LAMINA_RUNTIME"] = str(folder / "run")
        (folder / "run").mkdir(mode=0o700)
        layout = images.image_layout(options.image)
        lamina("convert", "--quiet", f"oci:{layout}:latest", f"oci:{folder}/native:latest")
        print(report.describe_machine())
        for device in options.devices:
            found = _many(folder, device, options.mounts)
            results[device] = found
            rows.append(_row(device, found))
            missed |= found["missed"]
    report.print_table(
        ("device", "mounts", f"number {FIRST}", "the last", "ratio", "KiB a mount", "told"), rows
    )
    print(f"bars: ratio {TIME_BAR}, {MEMORY_BAR_KIB:.0f} KiB a mount, all mounts told")
    if options.json:
        report.write_json(options.json, "many_mounts", {"mounts": options.mounts}, results)
    return int(missed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="for `make bench`; one is enough")
    parser.add_argument("--mounts", type=int, default=2000)
    parser.add_argument("--devices", nargs="+", default=DEVICES, choices=DEVICES)
    parser.add_argument("--image", default="minbase", help="as of the other benchmarks (minbase)")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _many(folder: Path, device: str, wanted: int) -> dict[str, Any]:
    times: list[float] = []
    memory_kib = [0, 0]
    cpu_s: list[float] = []
    limit = ""
    try:
        for number in range(wanted):
            mountpoint = folder / device / f"{number:05d}"
            mountpoint.mkdir(parents=True)
            begin = time.monotonic()
            try:
                mount_by_service(_spec(folder, device, mountpoint))
            except Error as error:
                limit = str(error)
                break
            times.append(time.monotonic() - begin)
            if len(times) in (FIRST, FIRST + CPU_AROUND, wanted - CPU_AROUND, wanted):
                cpu_s.append(_cpu_s())
            if len(times) == FIRST:
                memory_kib[0] = _service_kib()
        memory_kib[1] = _service_kib()
        begin = time.monotonic()
        told = len(lamina("mounts", "--json").splitlines())
        mounts_s = time.monotonic() - begin
    finally:
        begin = time.monotonic()
        for status in list_mounts():
            unmount(status.record.mountpoint)
        ended_s = time.monotonic() - begin
    first = report.median(times[FIRST - AROUND : FIRST])
    last = report.median(times[-AROUND:])
    per_mount_kib = (memory_kib[1] - memory_kib[0]) / max(1, len(times) - FIRST)
    cpu_ms = [
        1000 * (after - before) / CPU_AROUND
        for before, after in zip(cpu_s[::2], cpu_s[1::2], strict=False)
    ]
    missed = last > TIME_BAR * first or per_mount_kib > MEMORY_BAR_KIB or told != len(times)
    return {
        "times_s": times,
        "first_s": first,
        "last_s": last,
        "cpu_ms": cpu_ms,
        "kib_per_mount": per_mount_kib,
        "told": told,
        "mounts_s": mounts_s,
        "unmount_s": ended_s / max(1, len(times)),
        "limit": limit,
        # Fewer than were wanted are right where a sentence says why.
        "missed": missed or (len(times) < wanted and "max_user_groups" not in limit),
    }


def _spec(folder: Path, device: str, mountpoint: Path) -> MountSpec:
    return MountSpec(
        image=OpenRequest(
            reference=f"oci:{folder}/native:latest", store=str(folder / f"store-{device}")
        ),
        mountpoint=str(mountpoint),
        device=device,
    )


def _service_kib() -> int:
    """The memory of all processes of the service."""
    status = service_status([])
    assert status is not None
    total = 0
    for pid in status.pids.values():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


def _cpu_s() -> float:
    """The CPU that this process and those of the service have used."""
    status = service_status([])
    assert status is not None
    ticks = 0
    for pid in (os.getpid(), *status.pids.values()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _row(device: str, found: dict[str, Any]) -> tuple[str, ...]:
    if found["limit"]:
        print(f"{device}: {found['limit']}")
    print(
        f"{device}: lamina mounts {found['mounts_s']:.2f} s; "
        f"umount {found['unmount_s'] * 1000:.1f} ms a mount; CPU a mount, first and last: "
        + ", ".join(f"{each:.1f} ms" for each in found["cpu_ms"])
    )
    ratio = found["last_s"] / found["first_s"]
    return (
        device,
        str(len(found["times_s"])),
        f"{found['first_s'] * 1000:.1f} ms",
        f"{found['last_s'] * 1000:.1f} ms",
        f"{ratio:.2f}",
        f"{found['kib_per_mount']:.1f}",
        str(found["told"]),
    )


if __name__ == "__main__":
    sys.exit(main())
