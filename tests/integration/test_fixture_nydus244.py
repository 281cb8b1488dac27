"""Images that nydus-image 2.4.4 wrote in five ways show what nydusd 2.4.4 shows of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from lamina.content.lazy_image import LazyImage
from lamina.erofs.layout import BlobFeature
from lamina.image.compare import compare
from tests.support.native_images import open_bootstrap
from tests.support.serving import FolderSource
from tests.support.tools import require_shared

WAYS = ("zstd-1m", "lz4-64k", "none-256k-sha256", "zstd-batch", "targz-ref")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked; the blobs of ``targz-ref`` are the layers under their ids."""
    folder = tmp_path_factory.mktemp("nydus244")
    with tarfile.open(require_shared("fixtures", "nydus244.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    for number in (1, 2):
        layer = folder / f"l{number}.tar.gz"
        digest = hashlib.sha256(layer.read_bytes()).hexdigest()
        shutil.copy(layer, folder / "targz-ref" / "blobs" / digest)
    return folder


def expected_files(folder: Path) -> dict[bytes, bytes]:
    """The layers one over the other, by tarfile; ``copy`` and ``new``, whose folders the second
    layer does not name, were put into ``gone`` by nydus-image.
    """
    files: dict[bytes, bytes] = {}
    for name in ("l1.tar.gz", "l2.tar.gz"):
        with tarfile.open(folder / name) as layer:
            for member in layer:
                path = member.name
                if path.endswith(".wh..wh..opq"):
                    hidden = os.fsencode(f"/{os.path.dirname(path)}/")
                    files = {k: v for k, v in files.items() if not k.startswith(hidden)}
                elif "/.wh." in path:
                    del files[os.fsencode("/" + path.replace(".wh.", ""))]
                elif member.isfile() or member.islnk():
                    if path in ("data/copy", "bin/new"):
                        path = f"gone/{os.path.basename(path)}"
                    content = layer.extractfile(member)
                    assert content is not None
                    files[os.fsencode(f"/{path}")] = content.read()
    return files


def files_of(image: LazyImage) -> dict[bytes, bytes]:
    return {path: image.pread(stat, 0, stat.size) for path, stat in image.walk() if stat.is_file}


@pytest.mark.parametrize("way", WAYS)
def test_the_files_are_those_of_the_layers(way: str, fixture: Path, tmp_path: Path) -> None:
    boot = fixture / way / "image.boot"
    with open_bootstrap(boot, FolderSource(boot.parent), store=tmp_path / "store") as image:
        found = files_of(image)
        assert found.keys() == expected_files(fixture).keys()
        assert found == expected_files(fixture)
        assert sum(path.startswith(b"/etc/") for path, _ in image.walk()) == 403
        big = hashlib.md5(found[b"/data/big"]).hexdigest()
        assert big == "187f5284fa5fe6041dd7db3db9660c6e"
        owner = image.stat("/etc/owner")
        assert (owner.uid, owner.gid) == (70000, 1001)
        features = image.bootstrap.blobs[0].features
        assert bool(features & BlobFeature.BATCH) == (way == "zstd-batch")
        assert bool(features & BlobFeature.ZRAN) == (way == "targz-ref")


def test_all_ways_hold_the_same_tree(fixture: Path, tmp_path: Path) -> None:
    first, *others = (
        open_bootstrap(
            fixture / way / "image.boot", FolderSource(fixture / way), store=tmp_path / way
        )
        for way in WAYS
    )
    with first:
        for image in others:
            with image:
                assert [str(one) for one in compare(first, image)] == []
