"""Index images that the real nydus-image makes of gzip and tar layers (RAFS v6 §6.6, §7)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.build.source_image import open_source_image
from lamina.erofs.layout import BlobFeature
from lamina.errors import Error, IntegrityError
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from tests.integration.test_index import index, ordinary_image
from tests.support.index_layers import COMPRESSIONS, lower_layer, nydus_targz_ref, upper_layer
from tests.support.native_images import open_bootstrap
from tests.support.nydusd import nydusd_mount
from tests.support.opening import open_image
from tests.support.serving import FolderSource

pytestmark = pytest.mark.tools


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSIONS if not kind.startswith("zstd")])
def test_images_of_nydus_compare_equal(
    kind: str, peer: Callable[[str], Path], tmp_path: Path
) -> None:
    compress = COMPRESSIONS[kind]
    layers = [compress(lower_layer()), compress(upper_layer())]
    boot = nydus_targz_ref(peer("nydus-image"), layers, tmp_path / "nydus")
    plain = ordinary_image(tmp_path / "layout", kind)
    source = FolderSource(tmp_path / "nydus")
    with (
        open_bootstrap(boot, source, store=tmp_path / "store") as image,
        open_source_image(plain) as wanted,
    ):
        zran = [bool(blob.features & BlobFeature.ZRAN) for blob in image.bootstrap.blobs]
        assert zran == [kind != "tar"] * 2
        # nydus-image leaves the table of contents out.
        missing = ["/stargz.index.json: exists: absent / file"] * (kind == "estargz")
        assert [str(one) for one in compare(image, wanted)] == missing


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("spacing", [1, 30_000, 192 << 10])
@pytest.mark.parametrize("kind", [kind for kind in COMPRESSIONS if not kind.startswith("zstd")])
def test_nydusd_serves_ours(
    kind: str, spacing: int, peer: Callable[[str], Path], tmp_path: Path
) -> None:
    reference = ordinary_image(tmp_path / "layout", kind)
    index(reference, spacing_bytes=spacing)
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    with (
        open_image(reference, store=tmp_path / "store") as image,
        nydusd_mount(peer("nydusd"), image.bootstrap_path, blobs, tmp_path / "work") as mountpoint,
        open_source_image(reference) as wanted,
    ):
        # nydusd lets readers wait for ever where it cannot inflate; the first one gets an error.
        for path, stat in wanted.walk():
            if stat.is_file:
                data = (mountpoint / os.fsdecode(path)[1:]).read_bytes()
                assert data == wanted.pread(stat, 0, stat.size), path
        found = [str(one) for one in compare(wanted, FolderImage(mountpoint))]
        # A folder that no entry is about has the time 0, which nydusd shows as the present.
        assert [one for one in found if ": mtime: 0 / " not in one] == []


def test_damaged_layers_are_errors(peer: Callable[[str], Path], tmp_path: Path) -> None:
    layer = COMPRESSIONS["gzip -6"](lower_layer())
    boot = nydus_targz_ref(peer("nydus-image"), [layer], tmp_path / "nydus")
    (file,) = [
        path
        for path in (tmp_path / "nydus" / "blobs").iterdir()
        if path.stat().st_size == len(layer)
    ]
    for number, place in enumerate(range(1000, len(layer) // 2, len(layer) // 5)):
        damaged = bytearray(layer)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        source = FolderSource(file.parents[1])
        with open_bootstrap(boot, source, store=tmp_path / f"s{number}") as image:
            failed = 0
            for path, stat in image.walk():
                if stat.is_file:
                    try:
                        image.pread(stat, 0, stat.size)
                    except Error as error:
                        assert isinstance(error, IntegrityError), path
                        failed += 1
            assert failed
