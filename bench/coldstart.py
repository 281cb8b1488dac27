"""Time from ``run`` to the first output of a container whose image is in a registry behind a slow
link.

A registry and a client in two network namespaces, a veth pair with a token bucket between them.
The cases take turns in each round; before each start the page cache is dropped and the store of the
case is empty.  Measured are the time to the first byte that the command prints, the bytes that the
client's end of the link received, and the requests. A case whose programs are missing is named and
left out.  Needs root.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from support.lamina import Lamina, parse_variant
from support.network import Link
from support.nydus import Nydusd
from support.processes import FirstOutput, drop_caches
from support.registry import PORT, Registry

from support import images, report
from support.containerd import Containerd


class Case(Protocol):
    """One way to start a container."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    def start(self, registry: str) -> FirstOutput:
        """One cold start from the registry at this address."""
        ...


class Sample(NamedTuple):
    """One cold start."""

    seconds: float
    received_bytes: int
    requests: int


def main() -> int:
    """Measure, print the table, write JSON."""
    options = _parse()
    if os.geteuid() != 0:
        print("coldstart: needs root for network namespaces", file=sys.stderr)
        return 2
    # So that what was started ends and what was mounted goes when the benchmark is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    layout = images.image_layout(options.image)
    print(report.describe_machine())
    print(f"image {options.image}, `{options.command}`, {options.rate}, {options.rounds} rounds")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-bench-")))
        link = stack.enter_context(Link(options.rate))
        registry = stack.enter_context(Registry(link, folder))
        cases = _prepare(options, link, registry, folder, layout)
        results = {
            rtt_ms: _measure(cases, registry, link, rtt_ms, options.rounds)
            for rtt_ms in options.rtt_ms
        }
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        report.write_json(options.json, "coldstart", settings, _as_json(results))
    return 0


def _parse() -> argparse.Namespace:
    parser = images.parser(__doc__, 3, "starts of each case")
    parser.add_argument("--command", default="node -v", help="what to run (node -v)")
    parser.add_argument("--rate", default="24mbit", help="rate of the link (24mbit)")
    parser.add_argument(
        "--rtt-ms", type=_floats, default=[0.0], help="round trip times, as 0,5,50 (0: as it is)"
    )
    parser.add_argument(
        "--variants",
        default="default",
        help="of lamina: CHUNK[:PACK[:DEVICE]],... or index, the image as it is; with +start "
        "behind it the start was recorded (default)",
    )
    parser.add_argument(
        "--peers",
        default="containerd,nydusd",
        help="which peers to measure: containerd, nydusd, nydusd-index (containerd,nydusd)",
    )
    return parser.parse_args()


def _floats(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _prepare(
    options: argparse.Namespace, link: Link, registry: Registry, folder: Path, layout: Path
) -> list[Case]:
    """Push the image in each case's form; cases without their programs are named and left out."""
    cases: list[Case] = []
    peers = options.peers.split(",")
    if "containerd" in peers and not _says_missing(Containerd.name, Containerd.missing()):
        target = f"docker://127.0.0.1:{PORT}/source:latest"
        registry.run(
            "skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", target
        )
        cases.append(Containerd(link, folder / "containerd", "source:latest", options.command))
    for name in ("nydusd", "nydusd-index"):
        if name in peers and not _says_missing(name, Nydusd.missing()):
            index = name == "nydusd-index"
            nydusd = Nydusd(link, folder / name, options.command, index=index)
            nydusd.prepare(registry, images.layer_files(layout))
            cases.append(nydusd)
    if not _says_missing("lamina", Lamina.missing()):
        for number, text in enumerate(filter(None, options.variants.split(","))):
            lamina = Lamina(link, folder / f"lamina{number}", options.command, parse_variant(text))
            lamina.prepare(registry, layout)
            cases.append(lamina)
    return cases


def _says_missing(name: str, missing: str | None) -> bool:
    if missing:
        print(f"left out: {name}: missing {missing}")
    return missing is not None


def _measure(
    cases: list[Case], registry: Registry, link: Link, rtt_ms: float, rounds: int
) -> dict[str, list[Sample]]:
    address = registry.address_at(rtt_ms)
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    outputs: dict[str, str] = {}
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            drop_caches()
            before, requests = link.traffic().received_bytes, registry.request_count()
            timed = case.start(address)
            received = link.traffic().received_bytes - before
            sample = Sample(timed.first_byte_s, received, registry.request_count() - requests)
            samples[case.name].append(sample)
            outputs[case.name] = timed.output
            print(
                f"  round {number + 1}: {case.name}: {sample.seconds:.2f} s, "
                f"{sample.received_bytes / 1e6:.1f} MB, {sample.requests} requests",
                file=sys.stderr,
            )
    if len(set(outputs.values())) > 1:
        raise RuntimeError(f"the cases printed different things: {outputs}")
    _print(samples, rtt_ms)
    return samples


def _print(samples: dict[str, list[Sample]], rtt_ms: float) -> None:
    seconds = {name: report.median([s.seconds for s in rows]) for name, rows in samples.items()}
    megabytes = {
        name: report.median([s.received_bytes / 1e6 for s in rows])
        for name, rows in samples.items()
    }
    peers = [name for name in samples if not name.startswith("lamina")]
    table = []
    for name, rows in samples.items():
        ratios = [
            f"{seconds[name] / seconds[peer]:.2f} / {megabytes[name] / megabytes[peer]:.2f}"
            for peer in peers
        ]
        requests = f"{report.median([s.requests for s in rows]):.0f}"
        table.append(
            [
                name,
                report.spread([s.seconds for s in rows]),
                f"{megabytes[name]:.1f}",
                requests,
                *ratios,
            ]
        )
    print(f"\nround trip time {f'{rtt_ms:g} ms' if rtt_ms else 'of the link as it is'}\n")
    headings = ["case", "first output, s", "received, MB", "requests"]
    report.print_table([*headings, *(f"time / bytes over {peer}" for peer in peers)], table)


def _as_json(results: dict[float, dict[str, list[Sample]]]) -> list[dict[str, object]]:
    return [
        {"rtt_ms": rtt_ms, "case": name, "samples": [sample._asdict() for sample in rows]}
        for rtt_ms, samples in results.items()
        for name, rows in samples.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
