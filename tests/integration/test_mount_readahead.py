"""The readahead that a kernel mount is left with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.content.lazy_image import LazyImage
from lamina.linux.superblock import SuperblockWatch
from lamina.serve.mount import mount_image
from lamina.serve.readahead import LAZY_KIB
from tests.support.native_images import open_bootstrap
from tests.support.serving import FolderSource, write_sample
from tests.support.tools import require_erofs, require_kernel, require_root

pytestmark = pytest.mark.kernel

LINUX_DEFAULT_KIB = 128


@pytest.fixture
def image(tmp_path: Path) -> Iterator[LazyImage]:
    require_root()
    require_erofs()
    require_kernel(6, 14, "a file-backed EROFS mount and a fanotify pre-content event")
    if os.statvfs("/sys").f_flag & os.ST_RDONLY:
        pytest.skip("/sys is read-only here")
    folder = tmp_path / "image"
    write_sample(folder)
    with open_bootstrap(
        folder / "image.boot", FolderSource(folder), store=tmp_path / "store"
    ) as opened:
        yield opened


def readahead_of_mount(image: LazyImage, mountpoint: Path, device: str) -> set[int]:
    """Of all EROFS mounts made meanwhile: others may mount too."""
    mountpoint.mkdir()
    watch = SuperblockWatch("erofs")
    with mount_image(image, mountpoint, device):
        watch.mounted()
        return {int((Path(path) / "read_ahead_kb").read_text()) for path in watch.paths}


@pytest.mark.parametrize("device", ["fanotify", "fuse-blob"])
def test_incomplete_blobs_are_read_ahead_less(
    image: LazyImage, tmp_path: Path, device: str
) -> None:
    assert LAZY_KIB in readahead_of_mount(image, tmp_path / "mnt", device)


@pytest.mark.parametrize("device", ["fanotify", "fuse-blob"])
def test_complete_blobs_are_read_ahead_as_ever(
    image: LazyImage, tmp_path: Path, device: str
) -> None:
    for blob in image.blobs:
        blob.ensure(0, blob.size_bytes)
    assert LINUX_DEFAULT_KIB in readahead_of_mount(image, tmp_path / "mnt", device)
