"""Disks of layers, mounted each and stacked as a snapshotter stacks them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamina.build.index import IndexOptions, index_image
from lamina.linux.mount import attach_mount, create_mount, unmount
from lamina.oci.reference import parse_reference
from tests.support.layers import oci_layout


def indexed(layout: Path, layers: Sequence[bytes]) -> str:
    """Return an image in a layout, indexed with the trees of its layers."""
    reference = oci_layout(layout, layers)
    index_image(parse_reference(reference), IndexOptions(layer_trees=True))
    return reference


@contextmanager
def mounted(file: Path, mountpoint: Path) -> Iterator[None]:
    """Mount a file as EROFS, without a loop device."""
    mountpoint.mkdir()
    fd = create_mount("erofs", str(file), [("ro", None)])
    try:
        attach_mount(fd, str(mountpoint))
    finally:
        os.close(fd)
    try:
        yield
    finally:
        unmount(str(mountpoint))


@contextmanager
def stacked(disks: Sequence[Path], work: Path) -> Iterator[Path]:
    """Mount layers and overlayfs over them, as containerd's EROFS snapshotter does."""
    with ExitStack() as stack:
        for number, disk in enumerate(disks):
            stack.enter_context(mounted(disk, work / f"layer{number}"))
        (work / "empty").mkdir()
        (work / "merged").mkdir()
        lower = [work / "empty", *(work / f"layer{n}" for n in reversed(range(len(disks))))]
        options = "lowerdir=" + ":".join(map(str, lower))
        command = ["mount", "-t", "overlay", "-o", options, "overlay", str(work / "merged")]
        subprocess.run(command, check=True, timeout=60)
        stack.callback(subprocess.run, ["umount", work / "merged"], check=True, timeout=60)
        yield work / "merged"
