"""What a container sees by the overlayfs of containerd 2, as the integration test of Debian's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_containerd_overlayfs import check_refusal, compare_with
from tests.support.containerd import Containerd, start_containerd
from tests.support.overlay_layers import IMAGES, REFUSED
from tests.support.tools import require_peer, require_root


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    require_root()
    program, ctr = (str(require_peer(f"containerd-2/{name}")) for name in ("containerd", "ctr"))
    # Its transfer service would want to be told how to unpack.
    with start_containerd(tmp_path_factory.mktemp("c2"), program, ctr, ["--local"]) as daemon:
        yield daemon


@pytest.mark.parametrize("name", IMAGES)
def test_a_container_sees_the_same(containerd: Containerd, name: str, tmp_path: Path) -> None:
    compare_with(containerd, name, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_containerd_refuses(containerd: Containerd, name: str, tmp_path: Path) -> None:
    check_refusal(containerd, name, tmp_path)
