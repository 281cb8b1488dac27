"""The metadata that the kernel gets in place of the image's own, for overlayfs."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.descriptors import open_descriptors

from lamina.errors import StoreError
from lamina.serve import lower_metadata

CHANGED = bytes(range(256)) * 400


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An image with something to be hidden."""
    monkeypatch.setattr(lower_metadata, "without_attributes", lambda *_: CHANGED)
    return SimpleNamespace(bootstrap=None, bootstrap_path=tmp_path / "bootstrap")


def test_the_kernel_gets_all_of_it(image: Any) -> None:
    with lower_metadata.lower_metadata(image.bootstrap, image.bootstrap_path) as path:
        assert Path(path).read_bytes() == CHANGED


def test_a_full_disk_is_an_error_and_no_shorter_file(image: Any) -> None:
    """A write that finds room for a part of it says so by its count, and the kernel reads what is
    missing as zeros.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CHANGED) // 2, before[1]))
    files = open_descriptors()
    try:
        with (
            pytest.raises(StoreError, match="cannot write the metadata"),
            lower_metadata.lower_metadata(image.bootstrap, image.bootstrap_path),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert open_descriptors() <= files
