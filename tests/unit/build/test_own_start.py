"""Where the pages of a start are read while an image is converted."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.build import own_start
from lamina.build.own_start import store_folder
from lamina.errors import UnsupportedError


def test_plaintext_of_a_sealed_image_is_in_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, memory = str(tmp_path / "work"), tmp_path / "memory"
    monkeypatch.setattr(own_start, "MEMORY_FOLDER", str(memory))
    assert store_folder(work, is_sealed=False) == work
    with pytest.raises(UnsupportedError, match="in memory"):
        store_folder(work, is_sealed=True)
    memory.mkdir()
    assert store_folder(work, is_sealed=True) == str(memory)
