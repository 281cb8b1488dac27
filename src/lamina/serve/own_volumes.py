"""Folders that a container has to itself, outside its changes: what the image calls VOLUME, and
``-v PATH``.

docker copies what the image has there into a new volume.  Here the volume is an overlay of that
folder, so that nothing is fetched before it is read; where the image has nothing, it is a plain
folder.  They can be written to even if the container's root cannot, and end with what it wrote.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.serve.container_options import ContainerOptions
from lamina.serve.container_tree import ContainerTree
from lamina.serve.overlay import mount_folder_overlay, unmount_quietly

NEW_FOLDER_MODE = 0o755


class OwnVolume(NamedTuple):
    """A folder of the host that is shown at ``target``."""

    source: str
    target: str


def make_own_volumes(
    image: str, changes: str, options: ContainerOptions, of_image: Iterable[str]
) -> list[OwnVolume]:
    """Make the folders in ``changes``, and mount overlays where the image mounted at ``image`` has
    something.

    Places that the user gave something else are left out.  Raises FormatError for a path that leads
    nowhere in the image, SyscallError.
    """
    taken = {each.target for each in options.volumes} | {each.target for each in options.tmpfs}
    targets = dict.fromkeys((*map(_plain, of_image), *options.own_volumes))
    made: list[OwnVolume] = []
    with ContainerTree(image) as tree, contextlib.ExitStack() as undone:
        undone.callback(let_go, made)
        for number, target in enumerate(sorted(set(targets) - taken)):
            place = tree.resolve(target)
            if not place.parts or place.in_kernel_folder:
                raise place.refused("a volume cannot be there")
            folder = os.path.join(changes, "volumes", str(number))
            made.append(OwnVolume(_make(os.path.join(image, *place.parts), folder), target))
        undone.pop_all()
    return made


def let_go(volumes: Iterable[OwnVolume]) -> None:
    """Take away the mounts of volumes that are attached to a container, which keeps its own."""
    for volume in volumes:
        unmount_quietly(volume.source)


def was_written(changes: str) -> bool:
    """Tell whether anything is in one of the volumes of a container that ended."""
    uppers = glob.glob(os.path.join(glob.escape(changes), "volumes", "*", "upper"))
    return any(os.listdir(upper) for upper in uppers)


def _plain(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise FormatError(f"the image has a volume at {path!r}, which is no place")
    return "/" + "/".join(parts)


def _make(original: str, folder: str) -> str:
    """Return the folder that stands for the one of the image, made in *folder*."""
    data, mounted = os.path.join(folder, "upper"), os.path.join(folder, "merged")
    os.makedirs(data)
    try:
        status = os.lstat(original)
    except (FileNotFoundError, NotADirectoryError):
        os.chmod(data, NEW_FOLDER_MODE)
        return data
    if stat.S_ISDIR(status.st_mode) and os.listdir(original):
        os.mkdir(mounted)
        mount_folder_overlay(original, folder, mounted)
        return mounted
    os.chown(data, status.st_uid, status.st_gid)
    os.chmod(data, stat.S_IMODE(status.st_mode) if stat.S_ISDIR(status.st_mode) else 0o755)
    return data
