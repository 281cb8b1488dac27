"""A container of the snapshotter sees the same of a lazy image as of the ordinary one by
containerd's overlayfs: of Debian, and of some that tools read in different ways (docs/adr/0015).
All of those are compared without containerd's part in ``test_containerd_overlayfs.py``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_containerd_overlayfs import equal_times
from tests.support.containerd import Containerd, seen
from tests.support.layers import oci_layout
from tests.support.leaks import mounts_below
from tests.support.node import Node, Programs, node
from tests.support.node_images import lamina
from tests.support.overlay_layers import IMAGES, layer_bytes
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.tools import require_erofs, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    require_tool("docker-registry")
    with start_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def containerd() -> Iterator[tuple[Node, Containerd]]:
    require_root()
    require_erofs()
    program, ctr, _ = require_tool("containerd", "ctr", "runc")
    with node(Programs(program, ctr, ""), "none") as made:
        made.start_snapshotter()
        made.start_containerd()
        os.symlink("c.sock", made.folder / "socket")
        yield made, Containerd(made.folder, ctr)


def check_same(
    containerd: tuple[Node, Containerd], registry: RegistryServer, layout: Path, repository: str
) -> None:
    made, overlayfs = containerd
    wanted = overlayfs.tree(layout)
    name = f"{registry.host}/{repository}:latest"
    lamina("convert", f"oci:{layout}:latest", f"docker://{name}")
    made.lamina("ctr-pull", "--address", f"{made.folder}/c.sock", name)
    by = ("--snapshotter", "lamina")
    [top] = tops(made.ctr("snapshots", *by, "ls"))
    made.ctr("snapshots", *by, "prepare", "looked-at", top)
    point = made.folder / "looked-at"
    point.mkdir()
    subprocess.run(
        made.ctr("snapshots", *by, "mounts", str(point), "looked-at"), shell=True, check=True
    )
    try:
        assert len(mounts_below(made.folder / "snapshots")) == 1
        assert equal_times(wanted, seen(point)) == wanted
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()
        made.ctr("snapshots", *by, "rm", "looked-at")
        made.ctr("images", "rm", "--sync", name)


def tops(listed: str) -> list[str]:
    """Return the snapshots that no other is on, of what ``ctr snapshots ls`` prints."""
    rows = [line.split() for line in listed.splitlines()[1:]]
    parents = {row[1] for row in rows if len(row) == 3}
    return [row[0] for row in rows if row[0] not in parents]


@pytest.mark.parametrize("name", list(IMAGES)[::12])
def test_a_container_sees_the_same(
    containerd: tuple[Node, Containerd], registry: RegistryServer, name: str, tmp_path: Path
) -> None:
    oci_layout(tmp_path / "layout", [layer_bytes(layer) for layer in IMAGES[name]])
    repository = f"image-{list(IMAGES).index(name)}"
    check_same(containerd, registry, tmp_path / "layout", repository)


def test_of_debian(
    containerd: tuple[Node, Containerd], registry: RegistryServer, oci_image: Callable[[str], Path]
) -> None:
    check_same(containerd, registry, oci_image("minbase"), "debian")
