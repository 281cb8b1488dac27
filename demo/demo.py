"""The whole way of an image on this machine: build, convert, push, run before it has arrived,
record the start, and run it again on a machine that has nothing of it.

``make demo`` runs it.  Everything happens in a temporary folder and on 127.0.0.1, and is gone
afterwards but for a picture of both starts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from image import build_image
from link import Request, SlowLink
from picture import Start, draw

PACKAGES = ("nodejs", "python3", "git")
REGISTRY_CONFIGURATION = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
START_LIMIT_S = 15.0


def main() -> int:
    """Tell the story step by step; return the exit status."""
    options = _parse()
    problem = _problem()
    if problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="lamina-demo-") as name:
        folder = Path(name)
        image = Path(options.image) if options.image else _build(folder)
        with start_registry(folder) as port, SlowLink(port, options.mbit * 1e6 / 8) as link:
            repository = f"127.0.0.1:{port}/demo"
            _convert(image, repository)
            slow = f"127.0.0.1:{link.port}/demo"
            print(f"\nFrom here on the registry is behind a link of {options.mbit:g} Mbit/s.")
            lazy = _run_lazily(slow, folder / "store", link, options.command)
            again = _run_lazily(slow, folder / "store", link, options.command)
            artifact = _record(repository, folder, options.command)
            profiled = _run_lazily(slow, folder / "another", link, options.command)
            full = _pull_whole(slow, folder, link)
            kinds = _kinds(repository, folder, artifact)
    print()
    _line("run from an empty store", lazy)
    _line("the same again", again)
    _line("recorded, from an empty store", profiled)
    _line("copy of the whole image", full)
    print()
    for name, run in (("First run", lazy), ("Recorded", profiled)):
        time_share, share = run.seconds / full.seconds, run.received_bytes / full.received_bytes
        print(f"{name}: {time_share:.3f} of the time, {share:.3f} of the bytes of a copy.")
    _draw(options.picture, (lazy, profiled), kinds)
    return 0


class Timed(NamedTuple):
    """How long a command took, and what came over the link."""

    seconds: float
    received_bytes: int
    requests: list[Request]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build, convert, push and lazily run an image.")
    parser.add_argument("--mbit", type=float, default=50, help="rate of the link in Mbit/s (50)")
    parser.add_argument("--image", help="an OCI layout folder to take instead of building one")
    parser.add_argument(
        "--picture", default="demo-start.svg", help="where a picture of both starts goes"
    )
    parser.add_argument("command", nargs="*", help="what to run (node -v)")
    options = parser.parse_args()
    options.command = options.command or ["node", "-v"]
    return options


def _problem() -> str | None:
    if os.geteuid() != 0:
        return "needs root, because it starts a container"
    programs = ("apt-get", "dpkg-deb", "docker-registry", "runc", "lamina")
    absent = [name for name in programs if shutil.which(name) is None]
    return (
        f"not installed: {', '.join(absent)} (make demo installs them on Debian)"
        if absent
        else None
    )


def _build(folder: Path) -> Path:
    with _step(f"building a two-layer image from Debian packages: {', '.join(PACKAGES)}"):
        layers = build_image(folder / "image", PACKAGES, folder / "work")
        shutil.rmtree(folder / "work")
    sizes = " and ".join(f"{layer.size_bytes / 1e6:.0f} MB" for layer in layers)
    print(f"  layers of {sizes}")
    return folder / "image"


def _convert(image: Path, repository: str) -> None:
    _lamina("convert", f"oci:{image}:latest", f"docker://{repository}:latest")
    # The image as it was, for the comparison.
    _lamina("copy", f"oci:{image}:latest", f"docker://{repository}:original")


def _run_lazily(repository: str, store: Path, link: SlowLink, command: list[str]) -> Timed:
    run = ("run", "--rm", "--store", str(store))
    return _timed(link, *run, f"docker://{repository}:latest", *command)


def _record(repository: str, folder: Path, command: list[str]) -> str:
    """Record what the command reads, and attach it to the image; the digest of the artifact."""
    reference = f"docker://{repository}:latest"
    _lamina("profile", "--runs", "1", "--store", str(folder / "recorder"), reference, *command)
    shown = subprocess.check_output(["lamina", "profile", "--json", "show", reference])
    digest: str = json.loads(shown)["layer_digest"]
    return digest


def _kinds(repository: str, folder: Path, artifact: str) -> dict[str, str]:
    """What the blobs of the image are, by digest."""
    found = subprocess.check_output(
        ["lamina", "inspect", "--raw", "--store", str(folder / "store"), f"docker://{repository}"]
    )
    manifest = json.loads(found)
    return {
        manifest["config"]["digest"]: "manifest and configuration",
        manifest["layers"][-1]["digest"]: "file tree",
        artifact: "start artifact",
    }


def _draw(path: str, runs: tuple[Timed, Timed], kinds: dict[str, str]) -> None:
    titles = ("From an empty store", "From an empty store, recorded before")
    starts = [
        Start(title, run.seconds, run.requests, kinds)
        for title, run in zip(titles, runs, strict=True)
    ]
    Path(path).write_text(draw(starts), encoding="utf-8")
    print(f"What was loaded when: {path}")


def _pull_whole(repository: str, folder: Path, link: SlowLink) -> Timed:
    target = f"oci:{folder / 'pulled'}:latest"
    return _timed(link, "copy", f"docker://{repository}:original", target)


def _timed(link: SlowLink, *arguments: str) -> Timed:
    link.begin()
    start_s, before = time.monotonic(), link.carried_bytes
    _lamina(*arguments)
    return Timed(time.monotonic() - start_s, link.carried_bytes - before, link.requests)


def _lamina(*arguments: str) -> None:
    print(f"\n$ lamina {' '.join(arguments)}", flush=True)
    done = subprocess.run(["lamina", *arguments], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def _line(what: str, timed: Timed) -> None:
    print(
        f"  {what:<30} {timed.seconds:6.1f} s {timed.received_bytes / 1e6:8.1f} MB "
        f"{len(timed.requests):4} requests"
    )


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    start_s = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - start_s:.0f} s", flush=True)


@contextmanager
def start_registry(folder: Path) -> Iterator[int]:
    """docker-registry on a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    configuration = folder / "registry.yml"
    configuration.write_text(REGISTRY_CONFIGURATION.format(root=folder / "registry", port=port))
    print(f"starting docker-registry on 127.0.0.1:{port}", flush=True)
    command = ["docker-registry", "serve", str(configuration)]
    with (folder / "registry.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for_port(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def _wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
