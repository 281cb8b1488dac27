"""Real pull-through caches that have nothing yet, and then have it: pull, mount and read, run.

Each test prints what the cache and the registry behind it sent (``pytest -s``).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import write_layout
from tests.support.containers import small_root
from tests.support.pull_through import CACHES, Sent, sent_by, start_cache
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.shell import Shell
from tests.support.tools import require_root, require_tool

pytestmark = [pytest.mark.tools, pytest.mark.kernel]

ROOT = Path(__file__).parents[2]
FILES = 20
FILE_BYTES = 4 << 20
KINDS = ("native", "index")


def content(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A registry with an image of 80 MiB in one layer, native and with an index."""
    require_root()
    require_tool("docker-registry", "runc")
    folder = tmp_path_factory.mktemp("upstream")
    root = small_root(folder / "root")
    (root / "data").mkdir()
    for number in range(FILES):
        (root / "data" / f"{number:02}").write_bytes(content(number))
    with tarfile.open(folder / "layer.tar", "w") as archive:
        archive.add(root, ".")
    config = {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo ready"]}
    write_layout(folder / "layout", "app", (folder / "layer.tar").read_bytes(), config)
    with start_registry(folder / "registry", access_log=True) as server:
        shell = Shell(folder)
        shell("convert", f"oci:{folder}/layout:app", server.reference("native:1"))
        shell("copy", f"oci:{folder}/layout:app", server.reference("index:1"))
        shell("index", server.reference("index:1"))
        yield server


@pytest.fixture(params=CACHES)
def cache(
    request: pytest.FixtureRequest, upstream: RegistryServer, tmp_path: Path
) -> Iterator[RegistryServer]:
    with start_cache(request.param, tmp_path / request.param, upstream.host) as server:
        yield server


class Watch:
    """Counts what cache and registry send meanwhile, and prints it."""

    def __init__(self, what: str, cache: RegistryServer, upstream: RegistryServer) -> None:
        self.servers = {"cache": cache, "upstream": upstream}
        self.before = {name: sent_by(server) for name, server in self.servers.items()}
        self.what = what
        self.begin = time.monotonic()

    def tell(self) -> dict[str, Sent]:
        took_s = time.monotonic() - self.begin
        found = {}
        for name, server in self.servers.items():
            now, before = sent_by(server), self.before[name]
            found[name] = Sent(*(a - b for a, b in zip(now, before, strict=True)))
        words = "; ".join(
            f"{name}: {size / 1e6:.1f} MB in {requests} requests, {whole} of them whole"
            for name, (requests, size, whole) in found.items()
        )
        print(f"{self.what}: {took_s:.1f} s; {words}", file=sys.stderr)
        return found


def wait_until_warm(cache: RegistryServer, kind: str, shell: Shell) -> None:
    """Return when ranges of all blobs are answered as such: a cache keeps a blob a moment late."""
    lines = shell("coverage", "--json", cache.reference(f"{kind}:1")).stdout.splitlines()
    limit = time.monotonic() + 60
    for blob_id in (json.loads(line)["blob"] for line in lines):
        url = f"http://{cache.host}/v2/{kind}/blobs/sha256:{blob_id}"
        while True:
            request = urllib.request.Request(url, headers={"Range": "bytes=0-99"})
            with urllib.request.urlopen(request) as answer:
                if answer.status == 206:
                    break
            assert time.monotonic() < limit, "the cache has not kept what was read to its end"
            time.sleep(0.2)


def case(cache: RegistryServer) -> str:
    return cache.root.parent.name


@pytest.mark.parametrize("kind", KINDS)
def test_pull(kind: str, cache: RegistryServer, upstream: RegistryServer, shell: Shell) -> None:
    reference = cache.reference(f"{kind}:1")
    for turn in ("cold", "warm"):
        shell.environment["LAMINA_STORE"] = str(shell.folder / turn)
        watch = Watch(f"{case(cache)} pull {kind} {turn}", cache, upstream)
        shell("pull", reference)
        found = watch.tell()
        assert found["cache"].bytes < 1.3 * FILES * FILE_BYTES
        assert not (turn == "warm" and found["upstream"].bytes)
        wait_until_warm(cache, kind, shell)
        for line in shell("coverage", "--json", reference).stdout.splitlines():
            blob = json.loads(line)
            assert blob["ready_chunks"] == blob["chunks"]


@pytest.mark.parametrize("kind", KINDS)
def test_mount_and_read(
    kind: str, cache: RegistryServer, upstream: RegistryServer, shell: Shell
) -> None:
    reference = cache.reference(f"{kind}:1")
    for turn in ("cold", "warm"):
        shell.environment["LAMINA_STORE"] = str(shell.folder / turn)
        watch = Watch(f"{case(cache)} mount {kind} {turn}", cache, upstream)
        shell("mount", reference, "mnt")
        for number in (19, 2, 11, 19, 7):
            found = (shell.folder / "mnt" / "data" / f"{number:02}").read_bytes()
            assert hashlib.sha256(found).digest() == hashlib.sha256(content(number)).digest()
        watch.tell()
        shell("umount", "mnt")
        if turn == "cold":
            shell("pull", reference)
            wait_until_warm(cache, kind, shell)


@pytest.mark.parametrize("kind", KINDS)
def test_run(kind: str, cache: RegistryServer, upstream: RegistryServer, shell: Shell) -> None:
    reference = cache.reference(f"{kind}:1")
    for turn in ("cold", "warm"):
        shell.environment["LAMINA_STORE"] = str(shell.folder / turn)
        watch = Watch(f"{case(cache)} run {kind} {turn}", cache, upstream)
        done = subprocess.run(
            shell.words("run", "--rm", reference, "sha256sum < /data/19"),
            capture_output=True,
            text=True,
            env={**shell.environment, "PATH": os.environ["PATH"]},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0] == hashlib.sha256(content(19)).hexdigest()
        watch.tell()
        if turn == "cold":
            shell("pull", reference)
            wait_until_warm(cache, kind, shell)
