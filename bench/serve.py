"""How fast a mounted image is: walk, reads, and the latency of a miss.

The cases take turns in each round.  The page cache is dropped, the case mounted anew and walked; it
is dropped again before the first read, and the others follow at once.  Everything is resident
on this machine, except in the part about misses, where an empty store asks a docker-registry on
loopback, and the same pieces are fetched with curl in between.  A case whose programs are missing
is named and left out.  Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from support.processes import drop_caches
from support.registry import loopback_registry

from support import images, report
from support.serving import (
    REPOSITORY,
    Case,
    Ext4Copy,
    FilledWhileMounted,
    LaminaMount,
    NydusdMount,
    lamina,
)

ROOT = Path(__file__).resolve().parents[1]
PORT = 5199
NYDUSD, EXT4, OURS = "nydusd FUSE", "ext4", "lamina auto"
MEASURES = {
    "first_walk_us": "first walk, µs an entry",
    "second_walk_us": "second walk, µs an entry",
    "dropped_mb_s": "read, cache dropped, MB/s",
    "warm_mb_s": "read, warm, MB/s",
    "warm_bare_mb_s": "without fstat, MB/s",
}


class Bar(NamedTuple):
    """``ours`` must be at least ``factor`` times as fast as ``peer``."""

    measure: str
    peer: str
    factor: float


BARS = (
    Bar("first_walk_us", NYDUSD, 2.0),
    Bar("dropped_mb_s", NYDUSD, 2.5),
    Bar("dropped_mb_s", EXT4, 1.0),
    # Both read from the page cache, nydusd's too.
    Bar("warm_mb_s", EXT4, 0.95),
)
MISS_BAR_MS = 2.0

Results = dict[str, dict[str, list[float]]]


def main() -> int:
    """Measure, print the tables, write JSON."""
    options = _parse()
    if os.geteuid() != 0:
        print("serve: needs root to mount", file=sys.stderr)
        return 2
    layout = images.image_layout(options.image)
    print(report.describe_machine())
    print(f"image {options.image}, {options.rounds} rounds")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-serve-")))
        stack.enter_context(loopback_registry(folder, PORT))
        reference = f"docker://127.0.0.1:{PORT}/{REPOSITORY}:latest"
        lamina("convert", "--quiet", *options.convert.split(), f"oci:{layout}:latest", reference)
        cases = _prepare(options, reference, folder, layout)
        results: Results = {case.name: {name: [] for name in MEASURES} for case in cases}
        for case in cases:
            with case.mounted() as tree:
                _reading("read", tree)
        for number in range(options.rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                _measure(case, results[case.name])
        _print_results(results)
        misses = {
            device: _misses(options, reference, folder / f"miss-{device}", device)
            for device in options.devices.split(",")
            if options.misses
        }
        _print_misses(misses)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        found = {"resident": results, "miss_ms": misses}
        report.write_json(options.json, "serve", settings, found)
    return 0


def _parse() -> argparse.Namespace:
    parser = images.parser(__doc__, 3, "measurements of each case")
    parser.add_argument("--convert", default="", help="options of lamina convert, as one word")
    parser.add_argument(
        "--devices", default="auto,fanotify,fuse", help="of lamina (auto,fanotify,fuse)"
    )
    parser.add_argument("--peers", default="nydusd,ext4", help="to compare with (nydusd,ext4)")
    parser.add_argument("--misses", type=int, default=200, help="misses to time, 0 for none (200)")
    return parser.parse_args()


def _prepare(options: argparse.Namespace, reference: str, folder: Path, layout: Path) -> list[Case]:
    devices = options.devices.split(",")
    mounts = [LaminaMount(reference, folder / device, device) for device in devices if device]
    for mount in mounts:
        mount.make_resident()
    cases: list[Case] = [*mounts]
    cases += [
        FilledWhileMounted(reference, folder / f"{device}-filled", device)
        for device in devices
        if device in ("auto", "fuse-blob", "fanotify")
    ]
    peers = options.peers.split(",")
    if "nydusd" in peers:
        if missing := NydusdMount.missing():
            print(f"left out: {NYDUSD}: missing {missing}")
        else:
            cases.append(NydusdMount(images.layer_files(layout), folder / "nydusd"))
    if "ext4" in peers:
        cases.append(Ext4Copy(reference, folder / "ext4"))
    return cases


def _reading(what: str, tree: Path) -> Mapping[str, float]:
    program = ROOT / "bench" / "support" / "reading.py"
    done = subprocess.run(
        [sys.executable, program, what, tree], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(case: Case, into: dict[str, list[float]]) -> None:
    drop_caches()
    with case.mounted() as tree:
        for measure in ("first_walk_us", "second_walk_us"):
            into[measure].append(_reading("walk", tree)["us_an_entry"])
        drop_caches()
        for measure in ("dropped_mb_s", "warm_mb_s"):
            into[measure].append(_reading("read", tree)["mb_per_s"])
        into["warm_bare_mb_s"].append(_reading("read-bare", tree)["mb_per_s"])


def _print_results(results: Results) -> None:
    rows = [
        [name, *(report.spread(found[measure]) for measure in MEASURES)]
        for name, found in results.items()
    ]
    report.print_table(["case", *MEASURES.values()], rows)
    bars = []
    for bar in BARS:
        if bar.peer in results and OURS in results:
            factor = speed_ratio(results, bar)
            verdict = "holds" if factor >= bar.factor else "MISSED"
            what = MEASURES[bar.measure]
            bars.append([what, bar.peer, f"{factor:.2f} x", f"≥ {bar.factor:g} x", verdict])
    if bars:
        print()
        report.print_table([f"{OURS}, how much faster", "than", "found", "bar", ""], bars)


def speed_ratio(results: Results, bar: Bar) -> float:
    """How many times as fast ours is, by medians: of µs the smaller is better, of MB/s not."""
    ours = report.median(results[OURS][bar.measure])
    peer = report.median(results[bar.peer][bar.measure])
    return peer / ours if bar.measure.endswith("_us") else ours / peer


def _misses(
    options: argparse.Namespace, reference: str, folder: Path, device: str
) -> dict[str, list[float]]:
    """Time reads of 4 KiB of pieces that are not here, and requests of the same pieces."""
    mount = LaminaMount(reference, folder, device)
    places = _places(reference, folder / "plan", options.misses)
    found: dict[str, list[float]] = {"read_ms": [], "request_ms": []}
    with mount.mounted() as tree:
        for number, place in enumerate(places):
            # Who comes second finds the piece in the registry's page cache, so they take turns.
            if number % 2:
                found["request_ms"].append(_curl(place))
            found["read_ms"].append(_pread(tree, place))
            if not number % 2:
                found["request_ms"].append(_curl(place))
    mount.forget()
    return found


class Place(NamedTuple):
    """4 KiB of a file, and the stored piece that they are in."""

    path: str
    offset: int
    blob_id: str
    stored_offset: int
    stored_size: int


def _places(reference: str, store: Path, count: int) -> Sequence[Place]:
    """Choose pages at random, no two of one piece, each as likely as its file is long."""
    from lamina.opening.open_image import open_image
    from lamina.opening.request import request_of

    chosen: dict[tuple[str, int], Place] = {}
    rng = random.Random(1)
    with open_image(request_of(reference, store=store)) as image:
        files: list[Any] = [stat for _, stat in image.walk() if stat.is_file and stat.size]
        weights = [stat.size for stat in files]
        for stat in rng.choices(files, weights, k=20 * count):
            if len(chosen) == count:
                break
            offset = rng.randrange(stat.size) & ~4095
            number = offset // image.bootstrap.chunk_size
            chunk = next(iter(image.chunks(stat, number, 1)))
            blob = image.blobs[chunk.blob_index]
            piece = blob.table.piece_holding(chunk.chunk_index)
            path = os.fsdecode(stat.path).lstrip("/")
            place = Place(path, offset, blob.blob_id, piece.offset, piece.size)
            chosen.setdefault((blob.blob_id, piece.offset), place)
    shutil.rmtree(store)
    return list(chosen.values())


def _pread(tree: Path, place: Place) -> float:
    fd = os.open(tree / place.path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        start_s = time.perf_counter()
        os.pread(fd, 4096, place.offset)
        return (time.perf_counter() - start_s) * 1e3
    finally:
        os.close(fd)


def _curl(place: Place) -> float:
    """The time that curl says the request took, its own start left out."""
    url = f"http://127.0.0.1:{PORT}/v2/{REPOSITORY}/blobs/sha256:{place.blob_id}"
    span = f"{place.stored_offset}-{place.stored_offset + place.stored_size - 1}"
    command = ["curl", "-sSfL", "-r", span, "-o", "/dev/null", "-w", "%{time_total}", url]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout) * 1e3


def _print_misses(misses: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    rows = []
    for device, found in misses.items():
        read, request = found["read_ms"], found["request_ms"]
        more = [one - other for one, other in zip(read, request, strict=True)]
        verdict = "holds" if report.median(more) <= MISS_BAR_MS else "MISSED"
        cells = [_median_and_p90(values) for values in (read, request, more)]
        rows.append([f"lamina {device}", *cells, f"≤ {MISS_BAR_MS:.0f}", verdict])
    if rows:
        print()
        headings = ["miss of 4 KiB, ms: p50 / p90", "read", "curl of the piece", "more", "bar", ""]
        report.print_table(headings, rows)


def _median_and_p90(values: Sequence[float]) -> str:
    return f"{report.median(values):.2f} / {sorted(values)[len(values) * 9 // 10]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
