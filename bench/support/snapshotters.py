"""containerd 2 with a snapshotter of its own for cold and warm starts: overlayfs,
stargz-snapshotter or Lamina's, each with folders, sockets and processes of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from support.network import Link
from support.processes import ROOT, FirstOutput, Process, time_first_output
from support.registry import PORT, Registry

CACHE = Path(os.environ.get("LAMINA_CACHE") or Path.home() / ".cache/lamina-dev")
PEERS = CACHE / "peers"
START_LIMIT_S = 30.0
CONFIGURATION = """\
version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.sock.ttrpc"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "{name}"
"""
PROXY = """\
[proxy_plugins.{name}]
  type = "snapshot"
  address = "{folder}/s.sock"
  [proxy_plugins.{name}.exports]
    enable_remote_snapshot_annotations = "true"
"""


class Snapshotter:
    """containerd with overlayfs: pull the whole image, then run."""

    plugin = "overlayfs"

    def __init__(self, name: str, link: Link, folder: Path, repository: str) -> None:
        self.name = name
        self._link = link
        self.folder = folder
        self._repository = repository
        self.environment: dict[str, str] = {}

    @classmethod
    def missing(cls) -> str | None:
        """The programs that are not there, or None."""
        names = ("containerd", "ctr", "containerd-shim-runc-v2")
        peers = (*(f"containerd-2/{each}" for each in names), *cls.peers())
        absent = [each for each in peers if not (PEERS / each).exists()]
        absent += [] if shutil.which("runc") else ["runc"]
        return ", ".join(absent) or None

    @classmethod
    def peers(cls) -> tuple[str, ...]:
        """The programs of others that it needs besides."""
        return ()

    def prepare(self, registry: Registry, layout: Path) -> None:
        """Push the image in the form that it starts from."""
        target = f"docker://127.0.0.1:{PORT}/{self._repository}:latest"
        source = f"oci:{layout}:latest"
        registry.run("skopeo", "copy", "-q", "--dest-tls-verify=false", source, target)

    @contextlib.contextmanager
    def running(self, registry: str) -> Iterator[None]:
        """containerd and the snapshotter with nothing pulled."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        config = self.folder / "config.toml"
        text = CONFIGURATION + (PROXY if self.plugin != "overlayfs" else "")
        config.write_text(text.format(folder=self.folder, name=self.plugin))
        path = f"{PEERS}/containerd-2:{os.environ['PATH']}"
        self.environment = {"PATH": path, "CONTAINERD_ADDRESS": f"{self.folder}/c.sock"}
        log = self.folder.with_suffix(".log")
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.callback(self._unmount)
            stack.enter_context(self._serving(registry, log))
            command = self._link.on_client("containerd", "--config", str(config))
            stack.enter_context(Process(command, log=log, environment=self.environment))
            self._wait_for("c.sock")
            yield

    @contextlib.contextmanager
    def _serving(self, _registry: str, _log: Path) -> Iterator[None]:
        yield

    def _wait_for(self, socket: str) -> None:
        deadline_s = time.monotonic() + START_LIMIT_S
        while not (self.folder / socket).exists():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no {socket}, see {self.folder.with_suffix('.log')}")
            time.sleep(0.02)

    def _unmount(self) -> None:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = [point for point in points if point.startswith(f"{self.folder}/")]
        for point in sorted(below, reverse=True):
            subprocess.run(["umount", "-l", point], check=False)

    def image(self, registry: str) -> str:
        """The reference as ``ctr`` writes it."""
        return f"{registry}/{self._repository}:latest"

    def pull_and_run(self, registry: str, command: str) -> FirstOutput:
        """From the request to the first output."""
        image = shlex.quote(self.image(registry))
        pull = f"ctr images pull --plain-http {image} >/dev/null"
        return self._time(f"{pull} && exec {self._run(registry, command)}")

    def run(self, registry: str, command: str) -> FirstOutput:
        """Run an image that was pulled."""
        return self._time(f"exec {self._run(registry, command)}")

    def _run(self, registry: str, command: str) -> str:
        options = f"--rm --snapshotter {self.plugin} --runc-root {self.folder}/runc"
        return f"ctr run {options} {shlex.quote(self.image(registry))} cold {command}"

    def _time(self, script: str) -> FirstOutput:
        command = self._link.on_client("sh", "-c", script)
        return time_first_output(command, self.environment)


class Stargz(Snapshotter):
    """stargz-snapshotter with the image as eStargz, whose start nobody recorded."""

    plugin = "stargz"

    @classmethod
    def peers(cls) -> tuple[str, ...]:
        """The programs of others that it needs besides."""
        return ("stargz", "estargz")

    def prepare(self, registry: Registry, layout: Path) -> None:
        """Push the image with its layers as eStargz."""
        made = self.folder.with_suffix(".layout")
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            as_estargz(layout, made)
            super().prepare(registry, made)

    @contextlib.contextmanager
    def _serving(self, registry: str, log: Path) -> Iterator[None]:
        program, socket = str(PEERS / "stargz"), str(self.folder / "s.sock")
        command = self._link.on_client(program, str(self.folder / "stargz"), socket, registry)
        with Process(command, log=log):
            self._wait_for("s.sock")
            yield


class Lamina(Snapshotter):
    """Lamina's snapshotter with the image as a native one; with ``profiled`` its start was
    recorded.
    """

    plugin = "lamina"

    def __init__(
        self, link: Link, folder: Path, repository: str, *, profiled: tuple[str, ...] = ()
    ) -> None:
        super().__init__("lamina+start" if profiled else "lamina", link, folder, repository)
        self._profiled = profiled

    def prepare(self, registry: Registry, layout: Path) -> None:
        """Convert the image, and record its start."""
        target = f"docker://127.0.0.1:{PORT}/{self._repository}:latest"
        registry.run(*_program("convert"), "--quiet", f"oci:{layout}:latest", target)
        if self._profiled:
            store = ("--store", str(self.folder))
            registry.run(*_program("profile"), "--quiet", *store, target, *self._profiled)
            shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def _serving(self, _registry: str, log: Path) -> Iterator[None]:
        own = {
            "LAMINA_STORE": str(self.folder / "store"),
            "LAMINA_RUNTIME": str(self.folder / "service"),
            "PYTHONPATH": str(ROOT / "src"),
        }
        where = ("--root", str(self.folder / "snapshots"), "--socket", str(self.folder / "s.sock"))
        words = (*_program("snapshotter"), "--plain-http", *where)
        with Process(self._link.on_client(*words), log=log, environment=own):
            self._wait_for("s.sock")
            try:
                yield
            finally:
                stop = [*_program("service"), "stop", "--quiet"]
                subprocess.run(stop, env={**os.environ, **own}, check=False)


def as_estargz(layout: Path, made: Path) -> None:
    """Write the image of a layout with its layers as eStargz, by stargz's own library."""
    blobs = made / "blobs/sha256"
    blobs.mkdir(parents=True)
    shutil.copy(layout / "oci-layout", made)
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]).read_bytes())
    config = json.loads(_blob(layout, manifest["config"]).read_bytes())
    diff_ids = []
    for number, layer in enumerate(manifest["layers"]):
        tar, packed = made / "tar", made / "packed"
        with tar.open("wb") as file:
            subprocess.run(["gzip", "-dc", _blob(layout, layer)], stdout=file, check=True)
        command = [str(PEERS / "estargz"), "-in", str(tar), "-out", str(packed)]
        said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        described = _keep(blobs, packed, said["mediaType"])
        manifest["layers"][number] = {**described, "annotations": said["annotations"]}
        diff_ids.append(said["diffID"])
        tar.unlink()
    config["rootfs"]["diff_ids"] = diff_ids
    manifest["config"] = _keep_document(made, config, manifest["config"]["mediaType"])
    entry = index["manifests"][0]
    entry.update(_keep_document(made, manifest, entry["mediaType"]))
    (made / "index.json").write_text(json.dumps(index))


def _keep_document(made: Path, document: object, media_type: str) -> dict[str, object]:
    path = made / "document"
    path.write_text(json.dumps(document))
    return _keep(made / "blobs/sha256", path, media_type)


def _keep(blobs: Path, path: Path, media_type: str) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    path.rename(blobs / digest)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _blob(layout: Path, descriptor: dict[str, str]) -> Path:
    return layout / "blobs" / descriptor["digest"].replace(":", "/")


def _program(verb: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "lamina", verb)
