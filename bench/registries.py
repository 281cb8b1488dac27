"""Conversion between two registries over shaped links, against its two transfers alone.

The layer is downloaded with curl, the image converted from one registry to the other, and the
result's blob uploaded with curl; each registry has a link of its own.
The bar is 1.1 of the longer transfer.  Needs root (network namespaces), docker-registry, skopeo.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from support.costs import cost_of
from support.network import Link
from support.registry import PORT, Registry
from support.scale_images import Shape, scale_layout

from support import report

LAMINA = [sys.executable, "-m", "lamina"]


def main() -> int:
    """Measure, print a table, write JSON."""
    options = _parse()
    layout = scale_layout(Shape(1, options.files, 4 << 20))
    print(report.describe_machine())
    print(f"{options.files} files of 4 MiB, {options.rate}, {options.rounds} rounds")
    rounds = []
    for _ in range(options.rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lamina-bench-")))
            link = stack.enter_context(Link(options.rate))
            other = stack.enter_context(Link(options.rate, beside=link))
            registries = []
            for number, one in enumerate((link, other)):
                (folder / str(number)).mkdir()
                registries.append(stack.enter_context(Registry(one, folder / str(number))))
            rounds.append(_measure(link, registries[0], registries[1], folder / "blob", layout))
    _print(rounds)
    if options.json:
        settings = {"files": options.files, "rate": options.rate, "rounds": options.rounds}
        report.write_json(options.json, "registries", settings, {"rounds": rounds})
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=300, help="files of 4 MiB (300)")
    parser.add_argument("--rate", default="200mbit", help="rate of the link (200mbit)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each case (1)")
    parser.add_argument("--json", type=Path, help="write results here")
    return parser.parse_args()


def _measure(
    link: Link, source: Registry, target: Registry, blob: Path, layout: Path
) -> dict[str, float]:
    """Return seconds of each case, and of CPU time of the conversion; ``blob`` is a file."""
    copy = ("skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest")
    source.run(*copy, f"docker://127.0.0.1:{PORT}/source:latest")
    layer = _layer(source, "source")
    download_s = _seconds(link, "-o", str(blob), _url(source, f"source/blobs/{layer}"))
    start = time.perf_counter()
    names = [f"docker://{source.address}/source:latest", f"docker://{target.address}/native:latest"]
    command = [*LAMINA, "convert", "--quiet", "--plain-http", *names]
    cost = cost_of([link.on_client(*command)])
    convert_s = time.perf_counter() - start
    native = _layer(target, "native")
    target.run("curl", "-sSf", "-o", str(blob), _local(f"native/blobs/{native}"))
    place = _place(target, link)
    upload_s = _seconds(link, "-X", "PATCH", "-T", str(blob), "-o", "/dev/null", place)
    return {
        "download_s": download_s,
        "convert_s": convert_s,
        "upload_s": upload_s,
        "convert_cpu_s": cost.cpu_s,
    }


def _layer(registry: Registry, repository: str) -> str:
    """Return the digest of the first layer."""
    layers = json.loads(json.dumps(registry.manifest(repository, "latest")))["layers"]
    return str(layers[0]["digest"])


def _place(registry: Registry, link: Link) -> str:
    """Begin an upload from the client; return where it goes."""
    url = _url(registry, "again/blobs/uploads/")
    head = subprocess.run(
        link.on_client("curl", "-sSf", "-X", "POST", "-D", "-", "-o", "/dev/null", url),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = head.splitlines()
    return next(line.split()[1] for line in lines if line.lower().startswith("location:"))


def _seconds(link: Link, *arguments: str) -> float:
    start = time.perf_counter()
    octets = ("-H", "Content-Type: application/octet-stream")
    subprocess.run(link.on_client("curl", "-sSf", *octets, *arguments), check=True)
    return time.perf_counter() - start


def _url(registry: Registry, path: str) -> str:
    return f"http://{registry.address}/v2/{path}"


def _local(path: str) -> str:
    return f"http://127.0.0.1:{PORT}/v2/{path}"


def _print(rounds: list[dict[str, float]]) -> None:
    rows = []
    for times in rounds:
        longer_s = max(times["download_s"], times["upload_s"])
        rows.append(
            (
                *(f"{times[name]:.1f} s" for name in ("download_s", "upload_s", "convert_s")),
                f"{times['convert_cpu_s']:.1f} s",
                f"{times['convert_s'] / longer_s:.2f}",
            )
        )
    headings = ("download", "upload", "convert", "of it CPU", "of the longer transfer")
    report.print_table(headings, rows)


if __name__ == "__main__":
    sys.exit(main())
