"""Mount ordinary images of every kind of layer by their index, and compare with the layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.build.source_image import open_source_image
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.serve.mount import mount_image
from tests.integration.test_index import index, ordinary_image
from tests.integration.test_mount_devices import DEVICES, require_device
from tests.support.index_layers import COMPRESSIONS
from tests.support.opening import open_image

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_the_mounted_tree_is_that_of_the_layers(kind: str, device: str, tmp_path: Path) -> None:
    require_device(device)
    reference = ordinary_image(tmp_path / "layout", kind)
    index(reference)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with (
        open_image(reference, store=tmp_path / "store") as image,
        open_source_image(reference) as wanted,
        mount_image(image, mountpoint, device) as mounted,
    ):
        assert mounted.device == device
        assert [str(one) for one in compare(wanted, FolderImage(mountpoint))] == []
        assert image.statistics.requests > 0
