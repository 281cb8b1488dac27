"""``lamina export --layout tarfs``: Linux reads the files of a layer from its archive."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.build.source_image import open_source_image
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.mount import attach_mount, create_mount, unmount
from tests.fuzz.fuzz_tar import sparse
from tests.support.index_layers import content, lower_layer
from tests.support.layers import Item, folder, oci_layout, opaque, tar_bytes, whiteout
from tests.support.shell import Shell
from tests.support.tools import require_erofs, require_kernel, require_root

LARGE = content(20_000_001, 3)
"""Of two chunks."""


@contextmanager
def mounted(folder: Path, index: Path, tar: Path | None = None) -> Iterator[Path]:
    """Mount the file system, with its archive beside or behind it."""
    options: list[tuple[str, str | None]] = [("ro", None)]
    if tar is not None:
        options.append(("device", str(tar)))
    fd = create_mount("erofs", str(index), options)
    folder.mkdir()
    try:
        attach_mount(fd, str(folder))
    finally:
        os.close(fd)
    try:
        yield folder
    finally:
        unmount(str(folder))


def export(shell: Shell, layer: int, *words: str) -> dict[str, Any]:
    line = ("export", "--json", "--layout", "tarfs", "--layer", str(layer), *words)
    return dict(json.loads(shell(*line).stdout))


@pytest.mark.kernel
def test_the_archive_is_the_device_or_lies_behind(shell: Shell) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    long = [Item("w/" + "n" * 200 + f"{n}", b"%d" % n) for n in range(40)]
    archive = tar_bytes([Item("large", LARGE), folder("w", 0o711), *long])
    layers = [lower_layer(), archive]
    oci_layout(shell.folder / "layout", layers)
    for number, data in enumerate(layers, 1):
        index, tar = shell.folder / f"{number}.erofs", shell.folder / f"{number}.tar"
        told = export(shell, number, "--tar-file", str(tar), "oci:layout:latest", str(index))
        assert tar.read_bytes() == data
        assert told["diff_id"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert told["size"] == index.stat().st_size < len(data) / 4
        both = shell.folder / f"{number}.both"
        export(shell, number, "oci:layout:latest", str(both))
        assert both.read_bytes() == index.read_bytes() + data
        with (
            mounted(shell.folder / f"a{number}", index, tar) as beside,
            mounted(shell.folder / f"b{number}", both) as behind,
        ):
            own = oci_layout(shell.folder / f"own{number}", [data])
            with open_source_image(own) as image:
                for seen in (beside, behind):
                    found = [
                        each for each in compare(image, FolderImage(seen)) if each.path != b"/"
                    ]
                    assert found == []


@pytest.mark.kernel
def test_what_a_layer_hides_is_as_overlayfs_knows_it(shell: Shell) -> None:
    require_root()
    require_erofs()
    require_kernel(6, 12, "an EROFS mount of files")
    items = [folder("d"), whiteout("d/gone"), folder("o"), opaque("o"), Item("o/new", b"new")]
    oci_layout(shell.folder / "layout", [tar_bytes(items)])
    export(shell, 1, "oci:layout:latest", "disk")
    with mounted(shell.folder / "m", shell.folder / "disk") as seen:
        assert os.lstat(seen / "d/gone").st_rdev == 0
        assert os.getxattr(seen / "o", "trusted.overlay.opaque") == b"y"
        assert (seen / "o/new").read_bytes() == b"new"


def test_what_is_no_layer_for_it_is_refused(shell: Shell) -> None:
    oci_layout(shell.folder / "layout", [sparse("0,100,8000,100", 20_000, b"z" * 200)])
    words = ("export", "--layout", "tarfs")
    done = shell(*words, "--layer", "1", "oci:layout:latest", "disk", code=9)
    assert "sparse" in done.stderr
    assert not (shell.folder / "disk").exists()
    done = shell(*words, "--layer", "2", "oci:layout:latest", "disk", code=2)
    assert "none of them is 2" in done.stderr
    done = shell(*words, "oci:layout:latest", "disk", code=2)
    assert "of a single layer" in done.stderr
    done = shell(*words, "--layer", "1", "--gpt", "oci:layout:latest", "disk", code=2)
    assert "with --layer and --tar-file alone" in done.stderr
    done = shell("export", "--tar-file", "t", "oci:layout:latest", "disk", code=2)
    assert "--tar-file is of --layout tarfs" in done.stderr
