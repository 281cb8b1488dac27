"""How conversion and indexing grow: files 3 000 to 300 000, bytes 60 MB to 2.4 GB, layers 1 to 60.

Each round runs every tool once on every image, one after the other: `lamina convert`, `lamina
index`, and what nydus-image does for the same where it is there (chunks and packs of 128 KiB, zstd,
BLAKE3; it does not verify what it reads).  The images are made once and kept in the cache.  Needs
no root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from support.costs import Cost, cost_of
from support.nydus import peer_program
from support.scale_images import Shape, scale_layout

from support import images, report

SERIES = {
    "files": [Shape(1, count, 4 << 10) for count in (3_000, 30_000, 300_000)],
    "bytes": [Shape(1, count, 4 << 20) for count in (15, 150, 600)],
    "layers": [Shape(count, 300, 16 << 10) for count in (1, 10, 60)],
    "issue": [Shape(1, 300, 4 << 20)],
    "million": [Shape(1, 1_000_000, 4 << 10), Shape(1, 1_000_000, 1 << 10, folder_files=10)],
}
TOOLS = ("convert", "nydus create", "index", "nydus targz-ref")
PEER_OF = {"convert": "nydus create", "index": "nydus targz-ref"}
LAMINA = [sys.executable, "-m", "lamina"]


def main() -> int:
    """Measure, print a table for each series, write JSON."""
    options = _parse()
    print(report.describe_machine())
    results: dict[str, object] = {}
    for series in options.series:
        shapes = SERIES[series]
        layouts = {shape: scale_layout(shape) for shape in shapes}
        costs = _measure(options, layouts)
        _print(series, shapes, costs)
        for (shape, tool), found in costs.items():
            results[f"{shape.name}, {tool}"] = [cost._asdict() for cost in found]
    if options.json:
        settings = {"rounds": options.rounds, "series": options.series}
        report.write_json(options.json, "scale", settings, results)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case (3)")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=["files", "bytes", "layers"])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--work-dir", help="where results and temporary files go")
    parser.add_argument("--json", type=Path, help="write results here")
    return parser.parse_args()


def _measure(
    options: argparse.Namespace, layouts: dict[Shape, Path]
) -> dict[tuple[Shape, str], list[Cost]]:
    costs: dict[tuple[Shape, str], list[Cost]] = {}
    program = peer_program("nydus-image")
    if program is None:
        print("nydus-image: not there, left out (make peers)")
    for _ in range(options.rounds):
        for shape, layout in layouts.items():
            for tool, run in _runs(layout, program).items():
                if tool not in options.tools:
                    continue
                with tempfile.TemporaryDirectory(
                    prefix="lamina-bench-", dir=options.work_dir
                ) as folder:
                    costs.setdefault((shape, tool), []).append(run(Path(folder)))
    return costs


def _runs(layout: Path, program: Path | None) -> dict[str, Callable[[Path], Cost]]:
    runs: dict[str, Callable[[Path], Cost]] = {
        "convert": partial(_convert, layout),
        "index": partial(_index, layout),
    }
    if program is not None:
        layers = images.layer_files(layout)
        runs["nydus create"] = partial(_nydus_create, str(program), layers)
        runs["nydus targz-ref"] = partial(_nydus_index, str(program), layers)
    return {tool: runs[tool] for tool in TOOLS if tool in runs}


def _convert(layout: Path, folder: Path) -> Cost:
    command = [*LAMINA, "convert", "--quiet", f"oci:{layout}:latest", f"oci:{folder}/out:native"]
    return cost_of([command])


def _index(layout: Path, folder: Path) -> Cost:
    """Index a copy of the layout, whose blobs are links to the original ones."""
    out = folder / "out"
    shutil.copytree(layout, out, copy_function=os.link)
    (out / "index.json").unlink()
    shutil.copy(layout / "index.json", out)
    return cost_of([[*LAMINA, "index", "--quiet", f"oci:{out}:latest"]])


def _nydus_create(program: str, layers: list[Path], folder: Path) -> Cost:
    settings = ("--chunk-size", "0x20000", "--batch-size", "0x20000", "--compressor", "zstd")
    options = ("-t", "targz-rafs", "--digester", "blake3", *settings)
    return _nydus(program, layers, folder, options)


def _nydus_index(program: str, layers: list[Path], folder: Path) -> Cost:
    return _nydus(program, layers, folder, ("-t", "targz-ref"))


def _nydus(program: str, layers: list[Path], folder: Path, options: tuple[str, ...]) -> Cost:
    """All layers at once, then the merge, which takes the names of blobs from the bootstraps."""
    creates, bootstraps = [], []
    for number, layer in enumerate(layers):
        blobs = folder / str(number)
        blobs.mkdir()
        bootstrap = folder / f"{number:064x}"
        bootstraps.append(str(bootstrap))
        places = ("-B", str(bootstrap), "-D", str(blobs))
        creates.append([program, "create", *options, *places, str(layer)])
    return cost_of(creates, [[program, "merge", "-B", str(folder / "merged"), *bootstraps]])


def _print(series: str, shapes: list[Shape], costs: dict[tuple[Shape, str], list[Cost]]) -> None:
    rows = []
    for tool in TOOLS:
        before: tuple[Shape, list[Cost]] | None = None
        for shape in shapes:
            found = costs.get((shape, tool))
            if not found:
                continue
            rows.append((tool, shape.name, *_columns(found), *_growth(before, shape, found)))
            peer = costs.get((shape, PEER_OF.get(tool, "")))
            rows[-1] += (f"{_wall_s(found) / _wall_s(peer):.2f}" if peer else "",)
            before = shape, found
    print(f"\n{series}")
    headings = ("tool", "image", "wall time", "user", "system", "memory", "written")
    growth = ("growth over linear", "of CPU time")
    report.print_table((*headings, *growth, "of the peer's"), rows)


def _columns(found: list[Cost]) -> tuple[str, ...]:
    return (
        report.spread([cost.wall_s for cost in found], " s"),
        f"{min(cost.user_s for cost in found):.2f} s",
        f"{min(cost.system_s for cost in found):.2f} s",
        f"{max(cost.memory_bytes for cost in found) >> 20} MiB",
        f"{report.median([cost.written_bytes for cost in found]) / 1e6:.0f} MB",
    )


def _growth(
    before: tuple[Shape, list[Cost]] | None, shape: Shape, found: list[Cost]
) -> tuple[str, str]:
    """Return how much more wall and CPU time a byte takes than in the image before."""
    if before is None:
        return "", ""
    smaller, costs = before
    linear = shape.plain_bytes / smaller.plain_bytes
    wall = _wall_s(found) / _wall_s(costs) / linear
    cpu = min(cost.cpu_s for cost in found) / min(cost.cpu_s for cost in costs) / linear
    return f"{wall:.2f}", f"{cpu:.2f}"


def _wall_s(costs: list[Cost]) -> float:
    return report.median([cost.wall_s for cost in costs])


if __name__ == "__main__":
    sys.exit(main())
