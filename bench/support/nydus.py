"""nydus-image and nydusd as peers: a native RAFS image with their tools, and a cold start of it
over FUSE.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from support.network import Link
from support.processes import FirstOutput, time_first_output
from support.registry import Registry


class NydusImage(NamedTuple):
    """Files of a native image: one data blob a layer, named by its digest, and the merged
    bootstrap.
    """

    blobs: list[Path]
    bootstrap: Path


def peer_program(name: str) -> Path | None:
    """A peer in the cache that ``make peers`` fills, or on PATH."""
    root = os.environ.get("LAMINA_CACHE") or str(Path.home() / ".cache" / "lamina-dev")
    cached = Path(root) / "peers" / name
    if os.access(cached, os.X_OK):
        return cached
    found = shutil.which(name)
    return Path(found) if found else None


def create_image(layers: Sequence[Path], folder: Path, options: Sequence[str] = ()) -> NydusImage:
    """Convert layers (tar or tar.gz) in parallel with nydus-image, then merge.  ``options`` go to
    ``create``.
    """
    program = peer_program("nydus-image")
    assert program is not None
    blobs, bootstraps = folder / "blobs", folder / "layers"
    for each in (blobs, bootstraps):
        each.mkdir(parents=True, exist_ok=True)

    def create(number_and_layer: tuple[int, Path]) -> Path:
        number, layer = number_and_layer
        bootstrap = folder / f"layer{number}.boot"
        report = folder / f"layer{number}.json"
        _run(
            str(program),
            *("create", "--type", _source_type(layer), "--digester", "blake3"),
            *(*options, "--blob-dir", str(blobs), "--bootstrap", str(bootstrap)),
            *("--output-json", str(report), "--log-level", "warn", str(layer)),
        )
        # `merge` takes the blob id of a layer from the name of its bootstrap.
        blob_id = json.loads(report.read_text())["blobs"][-1]
        return bootstrap.rename(bootstraps / blob_id)

    with ThreadPoolExecutor(len(layers)) as pool:
        merged = list(pool.map(create, enumerate(layers)))
    bootstrap = folder / "merged.boot"
    _run(
        str(program),
        "merge",
        "--log-level",
        "warn",
        "--bootstrap",
        str(bootstrap),
        *map(str, merged),
    )
    return NydusImage([blobs / path.name for path in merged], bootstrap)


def create_index(layers: Sequence[Path], folder: Path) -> NydusImage:
    """Index layers (tar or tar.gz) as nydusify does; the blobs are the layers and their tables."""
    from lamina.blob.framing import read_bootstrap

    program = peer_program("nydus-image")
    assert program is not None
    bootstraps = folder / "layers"
    bootstraps.mkdir(parents=True)
    blobs: list[Path] = []
    tables: list[Path] = []
    for layer in layers:
        made = folder / f"{layer.name}.table"
        options = ("--type", "targz-ref", "--blob-inline-meta", "--features", "blob-toc")
        _run(str(program), "create", *options, "--blob", str(made), str(layer))
        data = made.read_bytes()
        bootstrap = read_bootstrap(partial(_part, data), len(data))
        assert bootstrap is not None
        (bootstraps / layer.name).write_bytes(bootstrap)
        tables.append(made.rename(folder / hashlib.sha256(data).hexdigest()))
        blobs += [layer, tables[-1]]
    bootstrap_file = folder / "merged.boot"
    digests = ",".join(table.name for table in tables)
    sizes = ",".join(str(table.stat().st_size) for table in tables)
    merged = [str(bootstraps / layer.name) for layer in layers]
    names = ("--blob-digests", digests, "--blob-sizes", sizes)
    _run(str(program), "merge", "--bootstrap", str(bootstrap_file), *names, *merged)
    return NydusImage(blobs, bootstrap_file)


def _part(data: bytes, offset: int, size: int) -> bytes:
    return data[offset : offset + size]


class Nydusd:
    """Mount over FUSE with the registry as backend, run in a chroot.

    ``index`` is for an index of the original layers (targz-ref) instead of a native image.
    """

    name = "nydusd FUSE"

    def __init__(self, link: Link, folder: Path, command: str, *, index: bool = False) -> None:
        if index:
            self.name = "nydusd FUSE targz-ref"
        self._index = index
        self._link = link
        self._folder = folder
        self._command = command
        self._repository = "nydus-index" if index else "nydus"
        self._bootstrap_digest = ""

    @staticmethod
    def missing() -> str | None:
        """The programs that are not there, or None."""
        absent = [name for name in ("nydusd", "nydus-image") if peer_program(name) is None]
        return ", ".join(absent) + " (make peers)" if absent else None

    def prepare(self, registry: Registry, layers: Sequence[Path]) -> None:
        """Make the image at the settings that start fastest (1 MiB chunks, zstd) and push its
        blobs.
        """
        with tempfile.TemporaryDirectory(dir=self._folder.parent) as folder:
            if self._index:
                image = create_index(layers, Path(folder))
            else:
                options = ("--chunk-size", "0x100000", "--compressor", "zstd")
                image = create_image(layers, Path(folder), options)
            archive = Path(folder) / "bootstrap.tar.gz"
            with tarfile.open(archive, "w:gz") as tar:
                tar.add(image.bootstrap, "image/image.boot")
            for blob in image.blobs:
                registry.push_file(self._repository, blob)
            self._bootstrap_digest = registry.push_file(self._repository, archive)

    def start(self, registry: str) -> FirstOutput:
        """One cold start with an empty cache: fetch the bootstrap layer, mount, run."""
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / "mnt").mkdir(parents=True)
        (self._folder / "cache").mkdir()
        (self._folder / "config.json").write_text(json.dumps(self._configuration(registry)))
        with ExitStack() as stack:
            stack.callback(self._clean)
            return time_first_output(self._link.on_client("sh", "-c", self._script(registry)))

    def _script(self, registry: str) -> str:
        folder, program = self._folder, peer_program("nydusd")
        url = f"http://{registry}/v2/{self._repository}/blobs/{self._bootstrap_digest}"
        return f"""
            set -e
            curl -sSf {url} | tar -xz -C {folder}
            setsid {program} fuse --rlimit-nofile 0 --log-level warn \\
                --config {folder}/config.json --bootstrap {folder}/image/image.boot \\
                --mountpoint {folder}/mnt >{folder}/log 2>&1 </dev/null &
            echo $! >{folder}/pid
            until mountpoint -q {folder}/mnt && test -e {folder}/mnt/usr; do
                kill -0 $! || exit 1; sleep 0.01; done
            exec chroot {folder}/mnt {self._command}
        """

    def _configuration(self, registry: str) -> dict[str, object]:
        backend = {"scheme": "http", "host": registry, "repo": self._repository}
        return {
            "device": {
                "backend": {"type": "registry", "config": backend},
                "cache": {"type": "blobcache", "config": {"work_dir": f"{self._folder}/cache"}},
            },
            "mode": "direct",
            "digest_validate": False,
            "iostats_files": False,
            "enable_xattr": True,
            "fs_prefetch": {"enable": False},
        }

    def _clean(self) -> None:
        mountpoint = str(self._folder / "mnt")
        subprocess.run(["umount", mountpoint], stderr=subprocess.DEVNULL, check=False)
        pid_file = self._folder / "pid"
        if pid_file.exists():
            _end(int(pid_file.read_text()))
        subprocess.run(["umount", "-l", mountpoint], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def _end(pid: int) -> None:
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        try:
            os.kill(pid, 15 if time.monotonic() < deadline_s else 9)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def _source_type(layer: Path) -> str:
    with layer.open("rb") as file:
        return "targz-rafs" if file.read(2) == b"\x1f\x8b" else "tar-rafs"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
