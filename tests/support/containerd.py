"""A real containerd of its own, to ask what a container sees of an image by overlayfs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{folder}/socket"
[ttrpc]
  address = "{folder}/socket.ttrpc"
"""


class Seen(NamedTuple):
    """What of an entry does not depend on when it was unpacked.  ``names`` are those of a file with
    several; ``mtime`` is None for what got its time from unpacking.
    """

    mode: str
    owner: tuple[int, int]
    mtime: float | None
    content: bytes
    target: str
    names: tuple[str, ...]
    xattrs: dict[str, bytes]


class RefusedError(Exception):
    """containerd does not unpack the image."""


class Containerd:
    """A running containerd, with ``ctr`` beside it."""

    def __init__(self, folder: Path, ctr: str, import_options: Sequence[str] = ()) -> None:
        self._folder = folder
        self._ctr = ctr
        self._import_options = import_options
        self._count = 0

    def run(self, *arguments: str) -> str:
        """Run ``ctr``; raises RefusedError if it fails."""
        command = [self._ctr, "-a", f"{self._folder}/socket", "-n", "test", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=120, text=True)
        if done.returncode:
            raise RefusedError(done.stderr)
        return done.stdout

    def tree(self, layout: Path, snapshotter: str = "overlayfs") -> dict[str, Seen]:
        """Return what a container sees of the one image in an OCI layout, by a snapshotter.

        Raises RefusedError for layers that are not unpacked.
        """
        self._count += 1
        archive = self._folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            for path in sorted(layout.iterdir()):
                tar.add(path, path.name)
        name = f"image:{self._count}"
        by = ("--snapshotter", snapshotter)
        options = (*self._import_options, *by, "--index-name", name)
        self.run("images", "import", *options, str(archive))
        mountpoint = self._folder / f"mnt-{self._count}"
        mountpoint.mkdir()
        self.run("snapshots", *by, "prepare", f"key-{self._count}", chain_id(layout))
        mounts = self.run("snapshots", *by, "mounts", str(mountpoint), f"key-{self._count}")
        subprocess.run(mounts, shell=True, check=True, timeout=60)
        try:
            return seen(mountpoint)
        finally:
            subprocess.run(["umount", mountpoint], check=True, timeout=60)


def chain_id(layout: Path) -> str:
    """Return the name of the snapshot of all layers of an image."""

    def document(digest: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((layout / "blobs/sha256" / digest[7:]).read_bytes())
        return found

    top = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    config = document(top["digest"])["config"]
    assert isinstance(config, dict)
    rootfs = document(config["digest"])["rootfs"]
    assert isinstance(rootfs, dict)
    chain, *others = rootfs["diff_ids"]
    for diff_id in others:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
    return str(chain)


def seen(root: Path) -> dict[str, Seen]:
    """Return what is below a folder, which is ``.`` itself.

    overlayfs lists whiteouts in folders that are of one layer alone; nobody can reach them.
    """
    now_s = time.time()
    found: dict[str, tuple[os.stat_result, Path]] = {".": (os.lstat(root), root)}
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(root))] = os.lstat(path), path
    names: dict[int, list[str]] = {}
    for relative, (status, _) in sorted(found.items()):
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            names.setdefault(status.st_ino, []).append(relative)
    return {
        relative: Seen(
            stat.filemode(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime if abs(status.st_mtime - now_s) > 86400 else None,
            path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
            os.readlink(path) if stat.S_ISLNK(status.st_mode) else "",
            tuple(names.get(status.st_ino, ())),
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
        for relative, (status, path) in found.items()
    }


@contextlib.contextmanager
def start_containerd(
    folder: Path, program: str, ctr: str, import_options: Sequence[str] = ()
) -> Iterator[Containerd]:
    """Run containerd with everything of its own below a folder, and end it."""
    # The path of a socket has little room.
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(folder=folder))
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log) as process,
    ):
        try:
            daemon = Containerd(folder, ctr, import_options)
            deadline_s = time.monotonic() + 60
            while True:
                try:
                    daemon.run("version")
                    break
                except RefusedError:
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        raise RuntimeError((folder / "log").read_text()) from None
                    time.sleep(0.05)
            yield daemon
        finally:
            process.terminate()
            process.wait(60)
