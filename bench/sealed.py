"""Time of a sealed image against the plain one: conversion, and reading all of it.

Each round converts an OCI layout both ways and reads both results into empty node stores, the two
kinds by turns, in processes of its own: fetch, verify, decompress, write, and for the sealed one
leaf hash and decryption.  Both have the same chunk size, packs, compressor and digest.  Needs no
root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from support.processes import timed

from support import images, report

KINDS = ("plain", "sealed")
WORK = ("convert", "read")
BAR = 1.15


class Sample(NamedTuple):
    """Seconds of wall and CPU time."""

    wall_s: float
    cpu_s: float


Samples = dict[tuple[str, str], list[Sample]]
"""(work, kind) -> samples."""


def main() -> int:
    """Measure, print the table, write JSON."""
    options = _parse()
    layout = images.image_layout(options.image)
    print(report.describe_machine())
    print(f"image {options.image}, {options.rounds} rounds, kinds by turns")
    samples: Samples = {(work, kind): [] for work in WORK for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="lamina-bench-", dir=options.work_dir) as folder:
        private, public = _keys(Path(folder))
        sealing = ["--seal", "--encryption-key", f"jwe:{public}"]
        extra: dict[str, tuple[list[str], list[str]]] = {
            "plain": ([], []),
            "sealed": (sealing, ["--decryption-key", str(private)]),
        }
        for number in range(options.rounds):
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                image, store = f"oci:{folder}/out:image", f"{folder}/store"
                command = ["convert", "-q", *extra[kind][0], f"oci:{layout}:latest", image]
                samples["convert", kind].append(_timed(command))
                command = ["pull", "-q", "--store", store, *extra[kind][1], image]
                samples["read", kind].append(_timed(command))
                for name in ("out", "store"):
                    shutil.rmtree(Path(folder) / name)
    ratios = _print(samples)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        found = {
            f"{work} {kind}": [sample._asdict() for sample in row]
            for (work, kind), row in samples.items()
        }
        report.write_json(options.json, "sealed", settings, {"ratios": ratios, **found})
    return 0


def _parse() -> argparse.Namespace:
    parser = images.parser(__doc__, 6, "rounds")
    parser.add_argument("--work-dir", help="where results and temporary files go")
    return parser.parse_args()


def _keys(folder: Path) -> tuple[Path, Path]:
    private, public = folder / "key.pem", folder / "key.pub"
    kind = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run(["openssl", "genpkey", *kind, "-out", str(private)], check=True)
    command = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(command, check=True)
    return private, public


def _timed(words: list[str]) -> Sample:
    wall_s, cpu_s, _ = timed([[sys.executable, "-m", "lamina", *words]])
    return Sample(wall_s, cpu_s)


def _print(samples: Samples) -> dict[str, float]:
    """Print the table; return the ratios of the medians of wall time, sealed over plain."""
    ratios, rows = {}, []
    for work in WORK:
        walls = {kind: [s.wall_s for s in samples[work, kind]] for kind in KINDS}
        cpus = {kind: [s.cpu_s for s in samples[work, kind]] for kind in KINDS}
        ratio = report.median(walls["sealed"]) / report.median(walls["plain"])
        ratios[work] = round(ratio, 3)
        cpu_ratio = report.median(cpus["sealed"]) / report.median(cpus["plain"])
        for kind in KINDS:
            shown = (f"{ratio:.2f}", f"{cpu_ratio:.2f}") if kind == "sealed" else ("", "")
            wall_s, cpu_s = report.spread(walls[kind], " s"), report.spread(cpus[kind], " s")
            rows.append((f"{work}, {kind}", wall_s, shown[0], cpu_s, shown[1]))
    report.print_table(("", "wall time", "of plain", "CPU time", "of plain"), rows)
    print(json.dumps({"ratios": ratios, "bar": BAR}))
    return ratios


if __name__ == "__main__":
    sys.exit(main())
