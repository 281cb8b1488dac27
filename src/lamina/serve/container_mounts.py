"""What is mounted in a container, and attaching it: volumes, files of ``/etc``, folders in memory.

The runtime mounts only the kernel's own file systems and what lies below them.  All else is
attached here, before it starts, to folders and files that were opened without following links, so
it does not matter what an image or another container with the same volume puts in the way, nor how
a runtime looks paths up.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import Any, Final, NamedTuple

from lamina.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    attach_mount,
    clone_tree,
    create_mount,
)
from lamina.serve.bundle import ContainerOptions, etc_files
from lamina.serve.container_tree import KERNEL_FOLDERS, ContainerTree, Place

LOG: Final = logging.getLogger("lamina")

_NEW_TMPFS_MODE: Final = 0o1777
"""What the kernel gives a tmpfs; one on a folder of the image has the mode of that, as in runc."""


class WantedMount(NamedTuple):
    """Something to mount: a path of the host, or with None an empty folder in memory.

    ``provided`` is a file that Lamina adds by itself.
    """

    target: str
    source: str | None
    read_only: bool = False
    provided: bool = False

    def for_runtime(self, path: str) -> dict[str, Any]:
        """The entry of ``config.json`` (OCI runtime specification, config.md)."""
        if self.source is None:
            options = ["nosuid", "nodev"]
            return {
                "destination": path,
                "type": "tmpfs",
                "source": "tmpfs",
                "options": options,
            }
        options = ["rbind", "rprivate", "ro" if self.read_only else "rw"]
        return {"destination": path, "type": "bind", "source": self.source, "options": options}


def wanted_mounts(options: ContainerOptions, bundle: str) -> list[WantedMount]:
    """What a container's options ask for, those above others first.

    Name resolution and host name come from files of the bundle, so that a container may edit them.
    """
    taken = {volume.target for volume in options.volumes}
    wanted = [
        WantedMount(f"/etc/{name}", os.path.join(bundle, name), provided=True)
        for name in etc_files(options)
        if f"/etc/{name}" not in taken
    ]
    wanted += [WantedMount(each.target, each.source, each.read_only) for each in options.volumes]
    wanted += [WantedMount(target, None) for target in options.tmpfs]
    return sorted(wanted, key=lambda each: each.target.count("/"))


def place_mounts(
    rootfs: str, document: dict[str, Any], wanted: list[WantedMount]
) -> tuple[dict[str, Any], list[str]]:
    """Attach what is wanted to the tree at ``rootfs``, and make all that the runtime mounts on.

    Returns the ``config.json`` whose paths have no links and that has the mounts left to the
    runtime, and the paths of what was or will be mounted on in the tree.  Raises FormatError if the
    image has something else in a place, KernelError where the kernel refuses.
    """
    with ContainerTree(rootfs) as tree:
        targets = [_kernel_folder(tree, name) for name in KERNEL_FOLDERS]
        left = []
        for mount in wanted:
            place = tree.resolve(mount.target)
            if not place.in_kernel_folder:
                _attach(tree, place, mount)
                targets.append(place.path)
            elif mount.provided:
                raise place.refused("it is in a folder of the kernel")
            else:
                left.append((place, mount))
        process = {**document["process"], "cwd": _working_directory(tree, document, left)}
    mounts = [*document["mounts"], *(mount.for_runtime(place.path) for place, mount in left)]
    return {**document, "process": process, "mounts": mounts}, targets


def _kernel_folder(tree: ContainerTree, name: str) -> str:
    """Make sure of the folder that the runtime mounts one of the kernel's file systems on."""
    place = Place(f"/{name}", (name,))
    os.close(tree.folder(place)[0])
    return place.path


def _attach(tree: ContainerTree, place: Place, mount: WantedMount) -> None:
    if not place.parts:
        raise place.refused("that is the root")
    if mount.provided and tree.in_volume(place.parts) and not tree.exists(place):
        # Nobody asked for a file in a folder of the host.
        LOG.warning("%s is in a volume, where it is not; it is not provided", mount.target)
        return
    if mount.source is None:
        _attach_memory(tree, place)
        return
    attached = clone_tree(mount.source, MOUNT_ATTR_RDONLY if mount.read_only else 0)
    try:
        is_folder = stat.S_ISDIR(os.fstat(attached).st_mode)
        where = tree.folder(place)[0] if is_folder else tree.file(place)
        try:
            attach_mount(attached, where)
        finally:
            os.close(where)
    finally:
        os.close(attached)
    tree.note_volume(place)


def _attach_memory(tree: ContainerTree, place: Place) -> None:
    where, made = tree.folder(place)
    try:
        mode = _NEW_TMPFS_MODE if made else stat.S_IMODE(os.fstat(where).st_mode)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        memory = create_mount("tmpfs", "tmpfs", [("mode", f"{mode:o}")], attributes)
        try:
            attach_mount(memory, where)
        finally:
            os.close(memory)
    finally:
        os.close(where)


def _working_directory(
    tree: ContainerTree, document: dict[str, Any], left: list[tuple[Place, WantedMount]]
) -> str:
    """Where the command starts, made if it is not there, as docker does."""
    place = tree.resolve(document["process"]["cwd"])
    if not place.in_kernel_folder:
        os.close(tree.folder(place)[0])
    elif any(_is_below(place, other) for other, _ in left):
        raise place.refused("it is in a volume that is mounted later, where links may lead on")
    return place.path


def _is_below(place: Place, other: Place) -> bool:
    count = len(other.parts)
    return len(place.parts) > count and place.parts[:count] == other.parts
