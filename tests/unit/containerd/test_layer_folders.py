"""Folders of layers that are unpacked here."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.containerd.layer_folders import LayerFolders
from lamina.errors import FetchError


def test_nothing_is_left_of_a_layer_that_cannot_be_unpacked(tmp_path: Path) -> None:
    folders = LayerFolders(tmp_path)

    def fail(folder: str, work: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "file").write_bytes(b"a part")
        (Path(work) / "temporary").write_bytes(b"more")
        raise FetchError("the registry is silent")

    with pytest.raises(FetchError):
        folders.fill(7, fail)
    assert list((tmp_path / "s").iterdir()) == []
    folders.fill(7, lambda folder, _: Path(folder).mkdir())
    assert Path(folders.layer(7)).is_dir()
