"""nydus 2.2, the one that a registry of packages has, reads images without packs."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from lamina.codec.compress import Compressor
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from tests.integration.test_convert import bootstraps, convert_layout
from tests.support.images import image_layout
from tests.support.layers import Item, folder, hard_link, oci_layout, symlink, whiteout
from tests.support.nydusd import nydusd_mount
from tests.support.opening import open_image
from tests.support.tools import require_peer, require_root

# Each folder has an entry: that nydusd shows the present as the time of what has none.
LOWER = [
    folder("./"),
    folder("etc", 0o751),
    Item("etc/small", b"a few words\n", mode=0o4711, uid=7, gid=8),
    Item("etc/gone", b"gone"),
    hard_link("etc/twice", "etc/small"),
    symlink("link", "etc/small"),
    Item("big", gzip.compress(bytes(300_000)) + bytes(range(256)) * 3000),
]
UPPER = [
    folder("etc", 0o700),
    whiteout("etc/gone"),
    Item("etc/new", b"new"),
    folder("many"),
    folder("many/deep"),
    Item("many/deep/file", b"x" * 70_000),
]


def check(native: Path, manifest: dict[str, object], work: Path) -> None:
    """By nydus-image of that version, and by its nydusd file by file."""
    program = require_peer("nydus-2.2/nydus-image")
    for bootstrap in bootstraps(native, manifest, work):
        done = subprocess.run([program, "check", "-B", bootstrap], capture_output=True, text=True)
        assert done.returncode == 0, f"{bootstrap}: {done.stdout}{done.stderr}"
    whole = next(bootstraps(native, manifest, work))
    blobs = native / "blobs" / "sha256"
    with (
        nydusd_mount(require_peer("nydus-2.2/nydusd"), whole, blobs, work / "daemon") as mountpoint,
        open_image(f"oci:{native}:latest", store=work / "store") as image,
    ):
        found = [str(one) for one in compare(image, FolderImage(mountpoint))]
    # That nydusd may give two names of one file numbers of their own.
    assert [each for each in found if ": hard link: " not in each] == []


@pytest.mark.parametrize("compressor", [Compressor.ZSTD, Compressor.LZ4_BLOCK, Compressor.NONE])
def test_an_image_without_packs(compressor: Compressor, tmp_path: Path) -> None:
    require_root()
    oci_layout(tmp_path / "layout", [LOWER, UPPER])
    native = tmp_path / "native"
    manifest = convert_layout(tmp_path / "layout", native, compressor=compressor, pack_size=0)
    (tmp_path / "daemon").mkdir()
    check(native, manifest, tmp_path)


def test_a_whole_distribution(tmp_path: Path) -> None:
    require_root()
    native = tmp_path / "native"
    manifest = convert_layout(image_layout("minbase"), native, pack_size=0)
    (tmp_path / "daemon").mkdir()
    check(native, manifest, tmp_path)
