"""Time of a conversion from an OCI layout to a native image in another one, against nydus-image.

Each round runs every case once, one after the other, in processes of its own.  The peer converts
the layers in parallel and merges them, with blobs and bootstrap as files, which is less than a
pushed image, and does not verify what it reads.  Two settings are compared, each with the same
chunk size, packs, compressor (zstd level 3) and digest (blake3) on both sides.  Needs no root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from support.nydus import peer_program
from support.processes import timed

from support import images, report

ZSTD = ("--compressor", "zstd")
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "1 MiB, no packs": (
        (*ZSTD, "--chunk-size", "1M", "--pack", "none", "--level", "3"),
        (*ZSTD, "--chunk-size", "0x100000"),
    ),
    "128 KiB, packs of 128 KiB": (
        (*ZSTD, "--chunk-size", "128K", "--pack", "128K", "--level", "3"),
        (*ZSTD, "--chunk-size", "0x20000", "--batch-size", "0x20000"),
    ),
}
"""Name -> (options of lamina, options of nydus-image)."""
OURS, PEER = "lamina, ", "nydus-image, "


class Sample(NamedTuple):
    """One conversion: seconds of wall and CPU time, bytes of the result, seconds by phase."""

    wall_s: float
    cpu_s: float
    image_bytes: int
    phases_s: dict[str, float]


def main() -> int:
    """Measure, print the table, write JSON."""
    options = _parse()
    layout = images.image_layout(options.image)
    print(report.describe_machine())
    print(f"image {options.image}, {options.rounds} rounds, cases by turns")
    with tempfile.TemporaryDirectory(prefix="lamina-bench-", dir=options.work_dir) as folder:
        cases = _cases(options, layout, Path(folder))
        samples: dict[str, list[Sample]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, run in cases.items():
                samples[name].append(run())
                shutil.rmtree(Path(folder) / "out", ignore_errors=True)
    _print(samples)
    if options.profile:
        for name, found in samples.items():
            if name.startswith(OURS):
                _print_profile(name, found)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        report.write_json(options.json, "convert", settings, _as_json(samples))
    return 0


def _parse() -> argparse.Namespace:
    parser = images.parser(__doc__, 3, "conversions of each case")
    parser.add_argument("--jobs", type=int, default=0, help="processes of lamina (0: one a core)")
    parser.add_argument("--work-dir", help="where results and temporary files go")
    parser.add_argument("--profile", action="store_true", help="print where our time goes")
    return parser.parse_args()


def _cases(
    options: argparse.Namespace, layout: Path, folder: Path
) -> dict[str, Callable[[], Sample]]:
    cases: dict[str, Callable[[], Sample]] = {}
    layers: list[Path] = []
    program = peer_program("nydus-image")
    if program is None:
        print("nydus-image: not there, left out (make peers)")
    else:
        layers = images.layer_files(layout)
    for name, (arguments, peer_arguments) in SETTINGS.items():
        if program is not None:
            cases[PEER + name] = partial(
                _run_peer, str(program), peer_arguments, layers, folder / "out"
            )
        command = [sys.executable, "-m", "lamina", "convert", "--json", *arguments]
        if options.jobs:
            command += ["--jobs", str(options.jobs)]
        command += [f"oci:{layout}:latest", f"oci:{folder}/out:native"]
        cases[OURS + name] = partial(_run_lamina, command)
    return cases


def _run_lamina(command: list[str]) -> Sample:
    wall_s, cpu_s, output = timed([command])
    result = json.loads(output[0])
    size = sum(image["image_bytes"] for image in result["images"])
    return Sample(wall_s, cpu_s, size, result["phases_s"])


def _run_peer(program: str, arguments: tuple[str, ...], layers: list[Path], out: Path) -> Sample:
    """All layers at once, then the merge; each bootstrap is named by its blob, as merge wants."""
    creates = []
    folders = []
    for number, layer in enumerate(layers):
        folder = out / str(number)
        folder.mkdir(parents=True)
        folders.append(folder)
        places = ("-B", str(folder / "boot"), "-D", str(folder))
        options = ("-t", "targz-rafs", "--digester", "blake3", *arguments, *places)
        creates.append([program, "create", *options, str(layer)])
    wall_s, cpu_s, _ = timed(creates)
    size = 0
    bootstraps = []
    for folder in folders:
        [blob] = [path for path in folder.iterdir() if path.name != "boot"]
        size += blob.stat().st_size
        bootstraps.append(str((folder / "boot").rename(out / blob.name)))
    merged = out / "merged"
    merge_s, merge_cpu_s, _ = timed([[program, "merge", "-B", str(merged), *bootstraps]])
    size += merged.stat().st_size
    return Sample(wall_s + merge_s, cpu_s + merge_cpu_s, size, {})


def _ratio(name: str, samples: dict[str, list[Sample]]) -> float | None:
    """Wall time of one of our cases over that of its peer, medians; None if there is none."""
    peer = samples.get(PEER + name.removeprefix(OURS)) if name.startswith(OURS) else None
    if peer is None:
        return None
    medians = [report.median([s.wall_s for s in found]) for found in (samples[name], peer)]
    return medians[0] / medians[1]


def _print(samples: dict[str, list[Sample]]) -> None:
    rows = []
    for name, found in samples.items():
        wall_s = [sample.wall_s for sample in found]
        quotient = _ratio(name, samples)
        ratio = "" if quotient is None else f"{quotient:.2f}"
        cpu_s = report.spread([sample.cpu_s for sample in found], " s")
        size = f"{found[0].image_bytes / 1e6:.1f} MB"
        rows.append((name, report.spread(wall_s, " s"), ratio, cpu_s, size))
    report.print_table(("conversion", "wall time", "of the peer's", "CPU time", "size"), rows)


def _print_profile(name: str, samples: list[Sample]) -> None:
    print(f"\n{name}: seconds of the converting thread, and of the workers' CPU")
    phases = {phase for sample in samples for phase in sample.phases_s}
    values = {
        phase: report.median([sample.phases_s.get(phase, 0.0) for sample in samples])
        for phase in phases
    }
    rows = [(phase, f"{seconds:.3f}") for phase, seconds in values.items()]
    report.print_table(("phase", "median"), sorted(rows, key=lambda row: row[1], reverse=True))


def _as_json(samples: dict[str, list[Sample]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, found in samples.items():
        results[name] = {
            "wall_s": [round(sample.wall_s, 3) for sample in found],
            "cpu_s": [round(sample.cpu_s, 3) for sample in found],
            "image_bytes": found[0].image_bytes,
            "phases_s": found[-1].phases_s,
        }
        quotient = _ratio(name, samples)
        if quotient is not None:
            results[name]["ratio"] = round(quotient, 3)
    return results


if __name__ == "__main__":
    sys.exit(main())
