"""Whole distribution images, in every kind of layer: mount by the index, compare with umoci."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from lamina.build.index import index_image
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from lamina.serve.mount import mount_image
from tests.integration.test_index import ordinary_image
from tests.support.index_layers import gzip_members, zstd_frames
from tests.support.lazy_layers import LazyLayer, estargz, zstd_chunked
from tests.support.opening import open_image
from tests.support.tools import require_root, require_tool

WANTED = "LAMINA_WHOLE_IMAGES"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.kernel,
    pytest.mark.tools,
    pytest.mark.skipif(WANTED not in os.environ, reason=f"takes minutes; set {WANTED}=1"),
]


def filtered(*command: str) -> Callable[[bytes], bytes]:
    """Compress with a program."""
    return lambda data: subprocess.run(command, input=data, capture_output=True, check=True).stdout


KINDS: dict[str, Callable[[bytes], bytes | LazyLayer]] = {
    "gzip -1": filtered("gzip", "-n1"),
    "gzip -6": filtered("gzip", "-n6"),
    "gzip -9": filtered("gzip", "-n9"),
    "pigz": filtered("pigz", "-n", "-6"),
    "bgzip": gzip_members,
    "zstd frames of 1 MiB": lambda data: zstd_frames(data, 1 << 20),
    "zstd of one frame": zstandard.compress,
    "estargz": lambda data: estargz(data, 4 << 20),
    "zstd:chunked": zstd_chunked,
    "tar": bytes,
}


@pytest.fixture(scope="module", params=["minbase", "node"])
def unpacked(
    request: pytest.FixtureRequest,
    oci_image: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[list[bytes], Path]]:
    """The tar streams of an image, and the tree that umoci unpacks of it."""
    require_root()
    require_tool("umoci", "pigz")
    layout = oci_image(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    bundle = folder / "bundle"
    unpack = ["umoci", "unpack", "--keep-dirlinks", "--image", f"{layout}:latest", bundle]
    subprocess.run(unpack, check=True, capture_output=True)

    def read(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(read(index["manifests"][0]["digest"]))
    tars = [gzip.decompress(read(layer["digest"])) for layer in manifest["layers"]]
    yield tars, bundle / "rootfs"
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mounted_tree_is_the_unpacked_one(
    kind: str, unpacked: tuple[list[bytes], Path], tmp_path: Path
) -> None:
    tars, root = unpacked
    reference = ordinary_image(tmp_path / "layout", KINDS[kind], tars)
    (report,) = index_image(parse_reference(reference))
    how = "by its tables" if report.by_table else report.table_problem
    print(f"{kind}: {100 * report.index_bytes / report.layer_bytes:.2f} % {how}")
    (tmp_path / "mnt").mkdir()
    with (
        open_image(reference, store=tmp_path / "store") as image,
        mount_image(image, tmp_path / "mnt"),
    ):
        found = compare(FolderImage(root), FolderImage(tmp_path / "mnt"))
        # umoci unpacked other layers, which are not eStargz.
        differences = [str(one) for one in found if one.path != b"/stargz.index.json"]
        assert differences == []
