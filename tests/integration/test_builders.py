"""Layers as real builders write them: what they are is what the tools themselves read."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from lamina.build.convert import convert
from lamina.build.source_image import open_source_image
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from tests.integration.test_index import index
from tests.support.layers import Item, folder, oci_layout
from tests.support.opening import open_image
from tests.support.tools import require_root, require_tool
from tests.unit.archive.test_sparse import FORMS, files, sparse_tar

pytestmark = pytest.mark.tools


def unpacked(layout: Path, folder: Path) -> Path:
    """What umoci unpacks."""
    [umoci] = require_tool("umoci")
    command = [umoci, "unpack", "--image", f"{layout}:latest", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder / "rootfs"


def last_layer(layout: Path) -> bytes:
    blobs = layout / "blobs" / "sha256"
    [top] = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = json.loads((blobs / top["digest"][7:]).read_bytes())
    return (blobs / manifest["layers"][-1]["digest"][7:]).read_bytes()


@pytest.mark.parametrize("size", [2, 512, 700_001])
def test_umoci_insert(size: int, tmp_path: Path) -> None:
    """umoci 0.4 fills up neither the last block of the content nor the archive."""
    require_root()
    [umoci] = require_tool("umoci")
    layout = tmp_path / "layout"
    reference = oci_layout(layout, [[folder("a"), Item("a/b", b"b")]])
    (tmp_path / "q").write_bytes(b"q" * size)
    command = [umoci, "insert", "--image", f"{layout}:latest", str(tmp_path / "q"), "/a/q"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    plain = gzip.decompress(last_layer(layout))
    assert plain.endswith(b"q")
    with tarfile.open(fileobj=io.BytesIO(plain + bytes(2048))) as tar:
        assert tar.getnames() == ["a/q"]
    native = f"oci:{tmp_path / 'native'}:x"
    convert(parse_reference(reference), parse_reference(native))
    index(reference)
    with open_source_image(reference) as wanted:
        assert wanted.open("/a/q").read() == b"q" * size
        found = FolderImage(unpacked(layout, tmp_path / "bundle"))
        # The folder has the time of unpacking, since no entry of the layer describes it.
        left = [one for one in compare(wanted, found) if one.path != b"/a"]
        assert [str(one) for one in left] == []
        for name in (reference, native):
            with open_image(name, store=tmp_path / "store") as image:
                assert [str(one) for one in compare(wanted, image)] == []


@pytest.mark.parametrize("form", FORMS)
def test_sparse_files_of_gnu_tar(form: str, tmp_path: Path) -> None:
    require_root()
    (tmp_path / "src").mkdir()
    layout = tmp_path / "layout"
    reference = oci_layout(layout, [sparse_tar(tmp_path / "src", form)])
    native = f"oci:{tmp_path / 'native'}:x"
    convert(parse_reference(reference), parse_reference(native))
    with open_image(native, store=tmp_path / "store") as image:
        for name, content in files().items():
            assert image.open(f"/{name}").read() == content
        if form == "old":
            # umoci does not know its type of entry.
            return
        found = FolderImage(unpacked(layout, tmp_path / "bundle"))
        left = [one for one in compare(image, found) if one.path != b"/"]
        assert [str(one) for one in left] == []
