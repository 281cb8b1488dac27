"""Registries of other projects on loopback, each with a folder of its own, for tests of peers."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.tools import require_peer, require_tool


class Running(NamedTuple):
    """A registry that runs: ``HOST:PORT`` and how it calls itself."""

    host: str
    name: str


def _distribution(folder: Path, port: int) -> list[str]:
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'storage'}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    return ["serve", str(config)]


def _zot(folder: Path, port: int) -> list[str]:
    config = folder / "config.json"
    document = {
        "storage": {"rootDirectory": str(folder / "storage")},
        "http": {"address": "127.0.0.1", "port": str(port), "compat": ["docker2s2"]},
        "log": {"level": "error"},
    }
    config.write_text(json.dumps(document))
    return ["serve", str(config)]


def _crane(folder: Path, port: int) -> list[str]:
    return ["registry", "serve", "--address", f"127.0.0.1:{port}", "--disk", str(folder)]


def _olareg(folder: Path, port: int) -> list[str]:
    return ["serve", "--addr", "127.0.0.1", "--port", str(port), "--dir", str(folder)]


_ARGUMENTS: dict[str, Callable[[Path, int], list[str]]] = {
    "docker-registry": _distribution,
    "registry": _distribution,
    "zot": _zot,
    "crane": _crane,
    "olareg": _olareg,
}
REGISTRIES = tuple(_ARGUMENTS)
"""``docker-registry`` is Debian's distribution 2.8, ``registry`` distribution 3."""


@contextlib.contextmanager
def peer_registry(name: str, folder: Path) -> Iterator[Running]:
    """Run a registry until the block ends; skips by name where it is missing."""
    debian = name == "docker-registry"
    program = require_tool(name)[0] if debian else str(require_peer(name))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, *_ARGUMENTS[name](folder, port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait(process, port, folder / "log")
        yield Running(f"127.0.0.1:{port}", name)
    finally:
        process.terminate()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
