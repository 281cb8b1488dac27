"""Real registries as pull-through caches of another one, and what they and it sent."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import tools
from tests.support.registry_server import RegistryServer, start_registry

CACHES = ("registry", "docker-registry", "zot")
"""Distribution 3, Debian's distribution 2.8, and zot, which copies images that are asked for."""

_LINE = re.compile(r'"GET (/v2/\S+/blobs/\S+) HTTP/1\.1" (\d+) (\d+)')


class Sent(NamedTuple):
    """What an access log tells of blobs."""

    requests: int
    bytes: int
    whole: int
    """Answers with status 200, or that were given up."""


def sent_by(server: RegistryServer) -> Sent:
    """What a distribution has sent of blobs so far."""
    assert server.log is not None
    found = _LINE.findall(server.log.read_text())
    whole = sum(status != "206" for _, status, _ in found)
    return Sent(len(found), sum(int(size) for *_, size in found), whole)


@contextlib.contextmanager
def start_cache(kind: str, folder: Path, upstream: str) -> Iterator[RegistryServer]:
    """Run a cache of the registry at ``upstream`` (``HOST:PORT``), with nothing in it."""
    folder.mkdir(parents=True)
    if kind == "zot":
        with _zot(folder, upstream) as server:
            yield server
        return
    program = tools.require_tool(kind)[0] if kind == "docker-registry" else None
    program = program or str(tools.require_peer(kind))
    extra = f"proxy:\n  remoteurl: http://{upstream}\n"
    with start_registry(folder, extra=extra, program=program, access_log=True) as server:
        yield server


@contextlib.contextmanager
def _zot(folder: Path, upstream: str) -> Iterator[RegistryServer]:
    program = tools.require_peer("zot")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    origin = {
        "urls": [f"http://{upstream}"],
        "onDemand": True,
        "tlsVerify": False,
        "content": [{"prefix": "**"}],
    }
    config = {
        "distSpecVersion": "1.1.1",
        "storage": {"rootDirectory": str(folder / "storage")},
        "http": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "info", "output": str(folder / "log")},
        "extensions": {"sync": {"enable": True, "registries": [origin]}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [str(program), "serve", str(folder / "config.json")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                tools.missing("zot does not start with the extension sync")
            time.sleep(0.05)
        yield RegistryServer(f"127.0.0.1:{port}", folder / "storage", None, folder / "log")
    finally:
        process.terminate()
        process.wait(60)
