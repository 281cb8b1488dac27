"""Containers of containerd 2 whose image is in a registry behind a slow link, by snapshotters.

*cold*: from the request to pull until the first byte that the command prints, with nothing on the
node; the cases take turns in each round, the page cache is dropped before each start.  *warm*: the
same container again, of the image that was pulled, with the page cache as it is; all cases are
there at once, and take turns at each start.  *Prepare + Mounts*: what a container asks of Lamina's
snapshotter when the metadata is on the node.  eStargz is
as stargz's own library makes it, without a recorded start.  A case whose programs are missing is
named and left out.  Needs root.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from support.network import Link
from support.processes import drop_caches
from support.registry import Registry
from support.snapshotters import Lamina, Snapshotter, Stargz

from support import images, report

PREPARES = 50


class Cold(NamedTuple):
    """One cold start."""

    first_byte_s: float
    received_bytes: int


class Case(NamedTuple):
    """What was measured of a case; ``prepare_ms`` of Lamina alone."""

    cold: list[Cold]
    warm_s: list[float]
    prepare_ms: list[float]


def main() -> int:
    """Measure, print the tables, write JSON."""
    options = _parse()
    if os.geteuid() != 0:
        print("containerd: needs root for network namespaces", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    layout = images.image_layout(options.image)
    print(report.describe_machine())
    print(f"image {options.image}, `{options.command}`, {options.rate}, {options.rounds} rounds")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lb-", dir="/tmp")))
        link = stack.enter_context(Link(options.rate))
        registry = stack.enter_context(Registry(link, folder))
        cases = _cases(options, link, folder)
        for case in cases:
            case.prepare(registry, layout)
        found = {case.name: Case([], [], []) for case in cases}
        for number in range(options.rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                found[case.name].cold.append(_cold(case, registry, link, options.command))
        if options.warm:
            _warm(cases, registry.address, options, found)
    _print(found)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        results = {name: case._asdict() for name, case in found.items()}
        report.write_json(options.json, "containerd", settings, results)
    return 0


def _parse() -> argparse.Namespace:
    parser = images.parser(__doc__, 3, "cold starts of each case")
    parser.add_argument("--command", default="node -v", help="what to run (node -v)")
    parser.add_argument("--rate", default="24mbit", help="rate of the link (24mbit)")
    parser.add_argument(
        "--cases",
        default="overlayfs,stargz,lamina,lamina+start",
        help="what to measure (overlayfs,stargz,lamina,lamina+start)",
    )
    parser.add_argument("--warm", type=int, default=20, help="warm starts of each case (20)")
    return parser.parse_args()


def _cases(options: argparse.Namespace, link: Link, folder: Path) -> list[Snapshotter]:
    command = tuple(options.command.split())
    known: dict[str, Callable[[], Snapshotter]] = {
        "overlayfs": lambda: Snapshotter("overlayfs", link, folder / "o", "ordinary"),
        "stargz": lambda: Stargz("stargz", link, folder / "e", "estargz"),
        "lamina": lambda: Lamina(link, folder / "l", "native"),
        "lamina+start": lambda: Lamina(link, folder / "p", "profiled", profiled=command),
    }
    made: list[Snapshotter] = []
    for name in options.cases.split(","):
        case = known[name]()
        missing = case.missing()
        if missing:
            print(f"left out: {name}: missing {missing}")
        else:
            made.append(case)
    return made


def _cold(case: Snapshotter, registry: Registry, link: Link, command: str) -> Cold:
    with case.running(registry.address):
        drop_caches()
        before = link.traffic().received_bytes
        first_byte_s = case.pull_and_run(registry.address, command).first_byte_s
        received = link.traffic().received_bytes - before
    print(f"  {case.name}: {first_byte_s:.2f} s, {received / 1e6:.1f} MB", file=sys.stderr)
    return Cold(first_byte_s, received)


def _warm(
    cases: list[Snapshotter], registry: str, options: argparse.Namespace, found: dict[str, Case]
) -> None:
    """Start all cases, pull, and let them take turns; the first turn counts for nothing."""
    with ExitStack() as stack:
        said = set()
        for case in cases:
            stack.enter_context(case.running(registry))
            said.add(case.pull_and_run(registry, options.command).output)
        for number in range(options.warm + 1):
            for case in cases if number % 2 == 0 else reversed(cases):
                warm = case.run(registry, options.command)
                said.add(warm.output)
                if number:
                    found[case.name].warm_s.append(warm.first_byte_s)
        if len(said) > 1:
            raise RuntimeError(f"not all print the same: {said}")
        for case in cases:
            if isinstance(case, Lamina):
                found[case.name].prepare_ms.extend(_prepares_ms(case))


def _prepares_ms(case: Snapshotter) -> list[float]:
    """Return how long Prepare and Mounts of a container take together."""
    from support.snapshot_calls import SnapshotCalls

    with SnapshotCalls(f"{case.folder}/s.sock") as calls:
        top = calls.top()
        found = []
        for number in range(PREPARES):
            begin_s = time.perf_counter()
            calls.prepare(f"bench/1/{number}", top)
            calls.mounts(f"bench/1/{number}")
            found.append((time.perf_counter() - begin_s) * 1000)
            calls.remove(f"bench/1/{number}")
        return found


def _print(found: dict[str, Case]) -> None:
    cold = {
        n: report.median([c.first_byte_s for c in case.cold])
        for n, case in found.items()
        if case.cold
    }
    warm = {name: report.median(case.warm_s) for name, case in found.items() if case.warm_s}
    peers = [name for name in ("overlayfs", "stargz") if name in found]
    table = []
    for name, case in found.items():
        table.append(
            [
                name,
                report.spread([c.first_byte_s for c in case.cold]) if case.cold else "",
                f"{report.median([c.received_bytes / 1e6 for c in case.cold]):.1f}"
                if case.cold
                else "",
                *(f"{cold[name] / cold[peer]:.3f}" if cold else "" for peer in peers),
                report.spread(case.warm_s) if case.warm_s else "",
                f"{warm[name] / warm['overlayfs']:.2f}" if "overlayfs" in warm else "",
                f"{report.median(case.prepare_ms):.1f}" if case.prepare_ms else "",
            ]
        )
    headings = ["case", "cold, s", "received, MB", *(f"over {peer}" for peer in peers)]
    warm_heading = "over overlayfs, warm"
    report.print_table([*headings, "warm, s", warm_heading, "Prepare + Mounts, ms"], table)


if __name__ == "__main__":
    sys.exit(main())
