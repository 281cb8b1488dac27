"""What containers wrote and ``lamina run`` keeps: ``ROOT/containers/NAME/upper``.

Nobody can fetch it again, so no budget and no ``gc`` removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from lamina.errors import NotFoundError
from lamina.store.files import store_errors


class KeptContainer(NamedTuple):
    """A container that ended, or runs: what it wrote takes ``disk_bytes``."""

    name: str
    disk_bytes: int
    last_used_s: float
    """When its folder was changed last, in seconds since 1970."""


def list_containers(root: Path) -> list[KeptContainer]:
    """Return the containers that the store at *root* keeps, by name.  Raises StoreError."""
    folder = root / "containers"
    found = []
    with store_errors(f"list {folder}"):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in names:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                found.append(KeptContainer(name, disk_bytes(path), path.stat().st_mtime))
    return found


def remove_container(root: Path, name: str) -> int:
    """Remove what a container wrote, which is gone for good; returns the bytes on disk.

    Raises NotFoundError if the store keeps none of that name, StoreError if it cannot be removed.
    """
    folder = root / "containers"
    kept = next((each for each in list_containers(root) if each.name == name), None)
    if kept is None:
        raise NotFoundError(
            f"the store {root} keeps no container {name!r}", hint="`lamina images` lists them"
        )
    remove_folder(folder / name)
    return kept.disk_bytes


def remove_folder(folder: Path) -> None:
    """Remove the folder of a container that has ended, and the one of all after the last; one that
    is not there is fine.  Raises StoreError.
    """
    with store_errors(f"remove {folder}"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def disk_bytes(folder: Path) -> int:
    """Return what all below *folder* takes on the disk, a file with several names once."""
    total, seen = 0, set()
    for path, _, files in os.walk(folder):
        for name in ("", *files):
            try:
                status = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total
