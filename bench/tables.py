"""What one cold read costs by the number of tiny files in the image: calls of functions, and time.

Everything is local, so what is counted is Lamina's own work: opening, laying out the cache file,
finding the piece of one file, decoding its pack.  A pack has at most a MiB, so finding a piece must
not grow with the image; laying out does, up to the most zones that a cache file has.  Calls are
counted in a run of their own, since counting takes longer than what is counted.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.single_layer import push_layer

from lamina.content.blob_set import zones_of
from lamina.opening.open_image import open_image
from lamina.opening.request import OpenRequest
from support import report
from support.serving import lamina

SIZES = (1_000, 10_000, 30_000, 100_000)
PACK_BYTES = 1 << 20
PIECE_BAR = 400
"""Calls that find a piece, however many files there are: two binary searches in a pack."""


def main() -> int:
    """Run everything; returns 1 if a bar is missed."""
    options = _parse()
    results: dict[str, Any] = {}
    print(report.describe_machine())
    rows = []
    for files in options.files:
        found = results[str(files)] = _measure(files, options.rounds)
        calls = found["calls"]
        rows.append(
            [
                f"{files}",
                f"{calls['read']}",
                f"{report.median(found['read_ms']):.0f}",
                f"{calls['piece']}",
                f"{calls['zones']}",
            ]
        )
    headings = ["tiny files", "calls of a cold read", "ms", "calls to find a piece", "to lay out"]
    report.print_table(headings, rows)
    if options.json:
        report.write_json(options.json, "tables", {"pack_bytes": PACK_BYTES}, results)
    most = max(found["calls"]["piece"] for found in results.values())
    print(f"most calls to find a piece {most}, bar {PIECE_BAR}")
    return int(most > PIECE_BAR)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, nargs="+", default=SIZES, help="sizes, ascending")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measure(files: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lamina-tables-") as folder:
        push_layer(f"oci:{folder}/plain:latest", _layer(files))
        lamina("convert", f"oci:{folder}/plain:latest", f"oci:{folder}/layout:latest")
        reference = f"oci:{folder}/layout:latest"

        def read(store: str) -> None:
            with open_image(OpenRequest(reference=reference, store=f"{folder}/{store}")) as image:
                image.open("d000/f000050").read()

        times = []
        for number in range(rounds):
            begin = time.perf_counter()
            read(f"timed-{number}")
            times.append((time.perf_counter() - begin) * 1000)
        calls = {"read": _calls(lambda: read("counted"))}
        with open_image(OpenRequest(reference=reference, store=f"{folder}/counted")) as image:
            table = image.blobs[0].table
            calls["piece"] = _calls(lambda: table.piece_holding(files // 2))
            calls["zones"] = _calls(lambda: zones_of(table))
    return {"read_ms": times, "calls": calls}


def _layer(files: int) -> bytes:
    """A layer of tiny files, 120 bytes each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(files):
            data = b"%06d" % number * 20
            info = tarfile.TarInfo(f"d{number // 100:03d}/f{number:06d}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _calls(work: Callable[[], object]) -> int:
    with _counted() as count:
        work()
    return count[0]


@contextmanager
def _counted() -> Iterator[list[int]]:
    count = [0]

    def note(_frame: object, event: str, _argument: object) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        yield count
    finally:
        sys.setprofile(None)


if __name__ == "__main__":
    sys.exit(main())
