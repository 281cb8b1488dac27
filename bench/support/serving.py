"""The mounted trees that ``bench/serve.py`` compares: ours by each device, nydusd's, and ext4's."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from support.nydus import NydusImage, create_image, peer_program
from support.processes import Process

REPOSITORY = "bench/serve"


class Case(Protocol):
    """A tree to measure."""

    name: str

    def mounted(self) -> contextlib.AbstractContextManager[Path]:
        """Mount it anew, with everything resident; returns its folder."""


def lamina(verb: str, *arguments: str) -> str:
    """Run the command line; returns its standard output."""
    command = [sys.executable, "-m", "lamina", verb, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lamina {verb}: {done.stderr.strip()[-2000:]}")
    return done.stdout


class LaminaMount:
    """``lamina mount`` with one device."""

    def __init__(self, reference: str, folder: Path, device: str) -> None:
        self.name = f"lamina {device}"
        self._reference = reference
        self._device = device
        self._store = folder / "store"
        self._mountpoint = folder / "mnt"
        self._mountpoint.mkdir(parents=True)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount, and unmount after the block."""
        options = ("--device", self._device, "--store", str(self._store), "--quiet")
        lamina("mount", *options, self._reference, str(self._mountpoint))
        try:
            yield self._mountpoint
        finally:
            lamina("umount", "--quiet", str(self._mountpoint))

    def make_resident(self) -> None:
        """Bring every chunk into the store: those too that no file of the merged tree refers to,
        without which a blob is not complete and stays behind its server.
        """
        lamina("pull", "--resident", "--quiet", "--store", str(self._store), self._reference)

    def forget(self) -> None:
        """Empty the store."""
        shutil.rmtree(self._store, ignore_errors=True)


class FilledWhileMounted(LaminaMount):
    """The same, mounted when nothing was here yet: what a container has after its first minute."""

    def __init__(self, reference: str, folder: Path, device: str) -> None:
        super().__init__(reference, folder, device)
        self.name += ", filled while mounted"

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount an empty store and read everything."""
        self.forget()
        with super().mounted() as folder:
            read_all(folder)
            yield folder


def read_all(folder: Path) -> None:
    """Read every file, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("reading.py")), "read", str(folder)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


class NydusdMount:
    """nydusd over FUSE with its blobs in a local folder and its cache filled."""

    name = "nydusd FUSE"

    def __init__(self, layers: Sequence[Path], folder: Path) -> None:
        folder.mkdir(parents=True)
        options = ("--chunk-size", "0x100000", "--compressor", "zstd")
        self._image: NydusImage = create_image(layers, folder, options)
        self._mountpoint = folder / "mnt"
        cache = folder / "cache"
        for path in (self._mountpoint, cache):
            path.mkdir()
        self._config = folder / "config.json"
        self._log = folder / "log"
        blobs = str(self._image.blobs[0].parent)
        configuration = {
            "device": {
                "backend": {"type": "localfs", "config": {"dir": blobs}},
                "cache": {"type": "blobcache", "config": {"work_dir": str(cache)}},
            },
            "mode": "direct",
            "digest_validate": False,
            "iostats_files": False,
            "enable_xattr": True,
            "fs_prefetch": {"enable": False},
        }
        self._config.write_text(json.dumps(configuration))

    @staticmethod
    def missing() -> str | None:
        """The programs that are not there, or None."""
        absent = [name for name in ("nydusd", "nydus-image") if peer_program(name) is None]
        return ", ".join(absent) + " (make peers)" if absent else None

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount, and end the server after the block."""
        command = [str(peer_program("nydusd")), "fuse", "--rlimit-nofile", "0"]
        command += ["--log-level", "warn", "--config", str(self._config)]
        command += ["--bootstrap", str(self._image.bootstrap), "--mountpoint"]
        with Process([*command, str(self._mountpoint)], log=self._log):
            try:
                _wait_for_mount(self._mountpoint)
                yield self._mountpoint
            finally:
                subprocess.run(["umount", self._mountpoint], check=False)


class Ext4Copy:
    """The unpacked tree on the disk."""

    name = "ext4"

    def __init__(self, reference: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._tree = folder / "tree"
        store = ("--store", str(folder / "store"), "--quiet")
        lamina("unpack", *store, reference, str(self._tree))

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Nothing to mount."""
        yield self._tree


def _wait_for_mount(mountpoint: Path) -> None:
    deadline = time.monotonic() + 20
    while not os.path.ismount(mountpoint):
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing was mounted at {mountpoint}")
        time.sleep(0.02)
