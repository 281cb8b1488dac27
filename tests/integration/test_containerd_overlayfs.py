"""A container sees by Lamina what it sees by the overlayfs of a real containerd (docs/adr/0015)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.build.convert import convert
from lamina.oci.reference import parse_reference
from lamina.serve.mount import mount_image
from tests.support.containerd import Containerd, RefusedError, Seen, seen, start_containerd
from tests.support.layers import oci_layout
from tests.support.opening import open_image
from tests.support.overlay_layers import IMAGES, REFUSED, layer_bytes
from tests.support.tools import require_erofs, require_kernel, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    require_root()
    program, ctr = require_tool("containerd", "ctr")
    with start_containerd(tmp_path_factory.mktemp("ctrd"), program, ctr) as daemon:
        yield daemon


def in_a_container(reference: str, work: Path) -> dict[str, Seen]:
    """What a container sees of an image that is converted and mounted: the mount below overlayfs,
    as ``lamina run`` and snapshotters put it.
    """
    native = f"oci:{work / 'native'}:x"
    convert(parse_reference(reference), parse_reference(native))
    mountpoint, empty, merged = work / "mnt", work / "empty", work / "merged"
    for path in (mountpoint, empty, merged):
        path.mkdir()
    with open_image(native, store=work / "store") as image, mount_image(image, mountpoint):
        options = f"lowerdir={empty}:{mountpoint}"
        command = ["mount", "-t", "overlay", "-o", options, "overlay", str(merged)]
        subprocess.run(command, check=True, timeout=60)
        try:
            return seen(merged)
        finally:
            subprocess.run(["umount", merged], check=True, timeout=60)


def equal_times(wanted: dict[str, Seen], found: dict[str, Seen]) -> dict[str, Seen]:
    """``found`` without the times that ``wanted`` has from unpacking."""
    return {
        path: one._replace(mtime=None) if path in wanted and wanted[path].mtime is None else one
        for path, one in found.items()
    }


def compare_with(containerd: Containerd, name: str, work: Path) -> None:
    """A container sees what one of containerd does."""
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    reference = oci_layout(work / "layout", [layer_bytes(layer) for layer in IMAGES[name]])
    wanted = containerd.tree(work / "layout")
    found = in_a_container(reference, work)
    assert equal_times(wanted, found) == wanted


def check_refusal(containerd: Containerd, name: str, work: Path) -> None:
    """containerd refuses what is among the refused."""
    oci_layout(work / "layout", [layer_bytes(layer) for layer in REFUSED[name]])
    with pytest.raises(RefusedError):
        containerd.tree(work / "layout")


@pytest.mark.parametrize("name", IMAGES)
def test_a_container_sees_the_same(containerd: Containerd, name: str, tmp_path: Path) -> None:
    compare_with(containerd, name, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_containerd_refuses(containerd: Containerd, name: str, tmp_path: Path) -> None:
    check_refusal(containerd, name, tmp_path)
