"""Time of indexing an ordinary image in an OCI layout, and the size of the index, against
nydus-image targz-ref.

Each round runs both once, one after the other, in processes of their own.  The peer indexes the
layers in parallel and merges them, with tables and bootstrap as files, which is less than an index
that is pushed, and does not verify what it reads.  Needs no root.
"""

from __future__ import annotations

import argparse
import json
import os
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

OURS, PEER = "lamina index", "nydus-image targz-ref"


class Sample(NamedTuple):
    """One index: seconds of wall and CPU time, bytes of the index."""

    wall_s: float
    cpu_s: float
    index_bytes: int


def main() -> int:
    """Measure, print the table, write JSON."""
    options = _parse()
    layout = images.image_layout(options.image)
    layers = images.layer_files(layout)
    layer_bytes = sum(layer.stat().st_size for layer in layers)
    print(report.describe_machine())
    print(f"image {options.image}, {layer_bytes / 1e6:.1f} MB of layers, {options.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="lamina-bench-", dir=options.work_dir) as folder:
        cases = _cases(options, layout, layers, Path(folder))
        samples: dict[str, list[Sample]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, run in cases.items():
                samples[name].append(run())
                shutil.rmtree(Path(folder) / "out", ignore_errors=True)
    _print(samples, layer_bytes)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        report.write_json(options.json, "index", settings, _as_json(samples, layer_bytes))
    return 0


def _parse() -> argparse.Namespace:
    parser = images.parser(__doc__, 3, "indexes of each kind")
    parser.add_argument("--spacing", default="", help="of lamina index (its default)")
    parser.add_argument("--work-dir", help="where results and temporary files go")
    return parser.parse_args()


def _cases(
    options: argparse.Namespace, layout: Path, layers: list[Path], folder: Path
) -> dict[str, Callable[[], Sample]]:
    cases: dict[str, Callable[[], Sample]] = {}
    program = peer_program("nydus-image")
    if program is None:
        print("nydus-image: not there, left out (make peers)")
    else:
        cases[PEER] = partial(_run_peer, str(program), layers, folder / "out")
    spacing = ["--spacing", options.spacing] if options.spacing else []
    cases[OURS] = partial(_run_lamina, spacing, layout, folder / "out")
    return cases


def _run_lamina(spacing: list[str], layout: Path, out: Path) -> Sample:
    """Index a copy of the layout, whose blobs are links to the original ones."""
    shutil.copytree(layout, out, copy_function=os.link)
    (out / "index.json").unlink()
    shutil.copy(layout / "index.json", out)
    command = [sys.executable, "-m", "lamina", "index", "--json", "--quiet", *spacing]
    wall_s, cpu_s, output = timed([[*command, f"oci:{out}:latest"]])
    return Sample(wall_s, cpu_s, json.loads(output[0])["index_bytes"])


def _run_peer(program: str, layers: list[Path], out: Path) -> Sample:
    """All layers at once, then the merge; each bootstrap is named by its layer, as merge wants."""
    tables, bootstraps = out / "tables", out / "bootstraps"
    tables.mkdir(parents=True)
    bootstraps.mkdir()
    creates = []
    for layer in layers:
        places = ("-B", str(bootstraps / layer.name), "-D", str(tables))
        creates.append([program, "create", "-t", "targz-ref", *places, str(layer)])
    wall_s, cpu_s, _ = timed(creates)
    merged = out / "merged"
    names = [str(bootstraps / layer.name) for layer in layers]
    merge_s, merge_cpu_s, _ = timed([[program, "merge", "-B", str(merged), *names]])
    size = merged.stat().st_size + sum(path.stat().st_size for path in tables.iterdir())
    return Sample(wall_s + merge_s, cpu_s + merge_cpu_s, size)


def _ratios(samples: dict[str, list[Sample]]) -> tuple[float, float] | None:
    """Our wall and CPU time over those of the peer, medians; None without the peer."""
    if PEER not in samples:
        return None
    walls = [report.median([s.wall_s for s in samples[name]]) for name in (OURS, PEER)]
    cpus = [report.median([s.cpu_s for s in samples[name]]) for name in (OURS, PEER)]
    return walls[0] / walls[1], cpus[0] / cpus[1]


def _print(samples: dict[str, list[Sample]], layer_bytes: int) -> None:
    ratios = _ratios(samples)
    rows = []
    for name, found in samples.items():
        shown = f"{ratios[0]:.2f} / {ratios[1]:.2f}" if ratios and name == OURS else ""
        wall_s = report.spread([sample.wall_s for sample in found], " s")
        cpu_s = report.spread([sample.cpu_s for sample in found], " s")
        size = found[0].index_bytes
        share = f"{size / 1e6:.2f} MB, {100 * size / layer_bytes:.2f} %"
        rows.append((name, wall_s, cpu_s, shown, share))
    headings = ("index", "wall time", "CPU time", "wall / CPU over the peer", "size, of the layers")
    report.print_table(headings, rows)


def _as_json(samples: dict[str, list[Sample]], layer_bytes: int) -> dict[str, Any]:
    results: dict[str, Any] = {
        name: {
            "wall_s": [round(sample.wall_s, 3) for sample in found],
            "cpu_s": [round(sample.cpu_s, 3) for sample in found],
            "index_bytes": found[0].index_bytes,
            "share": round(found[0].index_bytes / layer_bytes, 5),
        }
        for name, found in samples.items()
    }
    ratios = _ratios(samples)
    if ratios is not None:
        results["ratio"] = {"wall": round(ratios[0], 3), "cpu": round(ratios[1], 3)}
    return results


if __name__ == "__main__":
    sys.exit(main())
