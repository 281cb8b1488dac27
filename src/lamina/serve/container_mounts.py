"""What is mounted in a container, and attaching it: volumes, files of ``/etc``, folders in memory.

The runtime mounts only the kernel's own file systems and what lies below them.  All else is
attached here, before it starts, to folders and files that were opened without following links, so
it does not matter what an image or another container with the same volume puts in the way, nor how
a runtime looks paths up.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from lamina.errors import FormatError, UnsupportedError
from lamina.linux.mount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    attach_mount,
    clone_tree,
    create_mount,
)
from lamina.serve.container_etc import etc_files
from lamina.serve.container_options import ContainerOptions, MemoryFolder
from lamina.serve.container_tree import KERNEL_FOLDERS, ContainerTree, Place
from lamina.serve.runtime import ADMIN_PATH
from lamina.serve.runtime_bundle import INIT_TARGET

INIT_PROGRAMS: Final = ("docker-init", "tini-static", "catatonit")
LOG: Final = logging.getLogger("lamina")

_NEW_TMPFS_MODE: Final = 0o1777
"""What the kernel gives a tmpfs; one on a folder of the image has the mode of that, as in runc."""


class WantedMount(NamedTuple):
    """Something to mount: a path of the host, or an empty folder in memory.

    ``provided`` is a file that Lamina adds by itself.
    """

    target: str
    source: str | MemoryFolder
    read_only: bool = False
    provided: bool = False
    follows_host: bool = False

    def for_runtime(self, path: str) -> dict[str, Any]:
        """Return the entry of ``config.json`` (OCI runtime specification, config.md)."""
        if isinstance(self.source, MemoryFolder):
            pairs = [f"{key}={value}" for key, value in _memory_options(self.source, None)]
            flags = ["nosuid", "nodev", *_flags(self.source)]
            kind, source = "tmpfs", "tmpfs"
            return {"destination": path, "type": kind, "source": source, "options": flags + pairs}
        propagation = "rslave" if self.follows_host else "rprivate"
        options = ["rbind", propagation, "ro" if self.read_only else "rw"]
        return {"destination": path, "type": "bind", "source": self.source, "options": options}


def _flags(folder: MemoryFolder) -> list[str]:
    return ["ro"] * folder.read_only + ["noexec"] * (not folder.executable)


def _memory_options(folder: MemoryFolder, mode: int | None) -> list[tuple[str, str]]:
    """Return the options of tmpfs(5); *mode* is for one that has none of its own."""
    mode = folder.mode if folder.mode is not None else mode
    size = [] if folder.size is None else [("size", folder.size)]
    return size + ([] if mode is None else [("mode", f"{mode:o}")]) + list(folder.more)


def wanted_mounts(options: ContainerOptions, bundle: str) -> list[WantedMount]:
    """Return what a container's options ask for, in no order yet.

    Name resolution and host name come from files of the bundle, so that a container may edit them.
    Raises UnsupportedError if there is no program for ``--init``.
    """
    taken = {volume.target for volume in options.volumes}
    wanted = [
        WantedMount(f"/etc/{name}", os.path.join(bundle, name), provided=True)
        for name in etc_files(options)
        if f"/etc/{name}" not in taken
    ]
    if options.init:
        wanted.append(WantedMount(INIT_TARGET, find_init(), read_only=True, provided=True))
    wanted += [
        WantedMount(each.target, each.source, each.read_only, follows_host=each.follows_host)
        for each in options.volumes
    ]
    return wanted + [WantedMount(folder.target, folder) for folder in options.tmpfs]


def find_init() -> str:
    """Return a program that can be process 1 of any image: static, and known to reap and to pass
    signals on.  Raises UnsupportedError.
    """
    path = f"{os.environ.get('PATH', '')}:{ADMIN_PATH}:/usr/libexec/podman"
    for name in INIT_PROGRAMS:
        if (program := shutil.which(name, path=path)) is not None:
            return os.path.realpath(program)
    raise UnsupportedError(
        f"--init needs one of {', '.join(INIT_PROGRAMS)} on this machine",
        hint="install tini or catatonit",
    )


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
        for place, mount in _outer_first(tree, wanted):
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


def _outer_first(
    tree: ContainerTree, wanted: list[WantedMount]
) -> Iterator[tuple[Place, WantedMount]]:
    """Yield what is wanted with its place, what is above others before them; attach each before
    the next is asked for.

    It is the place that counts, since an image may have a link on any path, and each place is
    looked for anew, since a volume may have links too: they are followed inside the tree, as runc
    does.  A path that leads nowhere may yet lead somewhere in a volume.
    """
    left = list(wanted)
    while left:
        found: list[tuple[Place, WantedMount]] = []
        refused: list[FormatError] = []
        for mount in left:
            try:
                found.append((tree.resolve(mount.target), mount))
            except FormatError as error:
                refused.append(error)
        if not found:
            raise refused[0]
        first = min(found, key=lambda each: len(each[0].parts))
        left.remove(first[1])
        yield first


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
    if isinstance(mount.source, MemoryFolder):
        _attach_memory(tree, place, mount.source)
        return
    attributes = MOUNT_ATTR_RDONLY if mount.read_only else 0
    attached = clone_tree(mount.source, attributes, follows=mount.follows_host)
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


def _attach_memory(tree: ContainerTree, place: Place, folder: MemoryFolder) -> None:
    where, made = tree.folder(place)
    try:
        mode = _NEW_TMPFS_MODE if made else stat.S_IMODE(os.fstat(where).st_mode)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        attributes |= 0 if folder.executable else MOUNT_ATTR_NOEXEC
        attributes |= MOUNT_ATTR_RDONLY if folder.read_only else 0
        memory = create_mount("tmpfs", "tmpfs", _memory_options(folder, mode), attributes)
        try:
            attach_mount(memory, where)
        finally:
            os.close(memory)
    finally:
        os.close(where)


def _working_directory(
    tree: ContainerTree, document: dict[str, Any], left: list[tuple[Place, WantedMount]]
) -> str:
    """Return where the command starts, made if it is not there, as docker does."""
    place = tree.resolve(document["process"]["cwd"])
    if not place.in_kernel_folder:
        os.close(tree.folder(place)[0])
    elif any(_is_below(place, other) for other, _ in left):
        raise place.refused("it is in a volume that is mounted later, where links may lead on")
    return place.path


def _is_below(place: Place, other: Place) -> bool:
    count = len(other.parts)
    return len(place.parts) > count and place.parts[:count] == other.parts
