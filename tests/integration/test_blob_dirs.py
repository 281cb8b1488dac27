"""Folders of blobs as skopeo writes them are all that an image needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.native_images import build_image, push_image, some_bytes

FILES = {b"etc/one": some_bytes(90_000, 1), b"two": b"two"}

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
]


def skopeo_dir(layout: Path, folder: Path) -> None:
    run("skopeo", "copy", f"oci:{layout}:latest", f"dir:{folder}")


def shared_blobs(layout: Path, folder: Path) -> None:
    other = f"oci:{folder.parent}/bare:latest"
    run("skopeo", "copy", f"oci:{layout}:latest", "--dest-shared-blob-dir", folder, other)


@pytest.mark.parametrize("write", [skopeo_dir, shared_blobs])
def test_a_folder_of_skopeo(write, tmp_path: Path) -> None:
    layout, folder = tmp_path / "layout", tmp_path / "blobs"
    push_image(build_image(FILES, pack_size=4096), layout)
    write(layout, folder)
    index = json.loads((layout / "index.json").read_text())
    digest = index["manifests"][0]["digest"]
    shutil.rmtree(layout)
    done = run(
        *(sys.executable, "-m", "lamina", "cat", "--store", tmp_path / "store"),
        *("--blob-dir", folder, f"127.0.0.1:1/app@{digest}", "/etc/one"),
    )
    assert done == FILES[b"etc/one"]


def run(*command: object) -> bytes:
    done = subprocess.run([*map(str, command)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
