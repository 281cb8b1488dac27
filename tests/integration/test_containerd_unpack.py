"""An ordinary image is unpacked as containerd's own overlayfs unpacks it, the awkward ones of
docs/adr/0015 as well: compared as a container sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containerd import Containerd, RefusedError
from tests.support.layers import oci_layout
from tests.support.node import Programs, node
from tests.support.overlay_layers import IMAGES, REFUSED, layer_bytes
from tests.support.tools import require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

pytest.importorskip("grpc")


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    require_root()
    program, ctr, _ = require_tool("containerd", "ctr", "runc")
    with node(Programs(program, ctr, ""), "none") as made:
        made.start_snapshotter()
        made.start_containerd()
        os.symlink("c.sock", made.folder / "socket")
        yield Containerd(made.folder, ctr)


@pytest.mark.parametrize("name", IMAGES)
def test_a_container_sees_the_same(containerd: Containerd, name: str, tmp_path: Path) -> None:
    oci_layout(tmp_path / "layout", [layer_bytes(layer) for layer in IMAGES[name]])
    wanted = containerd.tree(tmp_path / "layout")
    found = containerd.tree(tmp_path / "layout", "lamina")
    assert found == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_both(containerd: Containerd, name: str, tmp_path: Path) -> None:
    oci_layout(tmp_path / "layout", [layer_bytes(layer) for layer in REFUSED[name]])
    for snapshotter in ("overlayfs", "lamina"):
        with pytest.raises(RefusedError):
            containerd.tree(tmp_path / "layout", snapshotter)
