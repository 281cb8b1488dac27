"""Whole distribution images over one node store: its budget, and what images have in common."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.codec.compress import Compressor
from lamina.content.lazy_image import LazyImage
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from lamina.store.node import NodeStore
from tests.support.disk import disk_usage
from tests.support.opening import open_image
from tests.support.tools import require_root

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUDGET = 100 << 20
SPAN = 1 << 20


class Watcher:
    """Looks at the size of a store all the while."""

    def __init__(self, root: Path) -> None:
        self.largest = 0
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self.largest = max(self.largest, disk_usage(self._root))

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def converted(layout: Path, name: str, folder: Path, options: ConvertOptions) -> str:
    target = f"oci:{folder / name}:latest"
    source = parse_reference(f"oci:{layout}:latest")
    convert(source, parse_reference(target), options)
    return target


@pytest.fixture(scope="module")
def node(oci_image: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return converted(oci_image("node"), "node", tmp_path_factory.mktemp("node"), ConvertOptions())


@pytest.fixture(scope="module")
def python(oci_image: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Packed and compressed in another way, so that no blob is one of the other image's."""
    options = ConvertOptions(pack_size=64 << 10, compressor=Compressor.LZ4_BLOCK)
    return converted(oci_image("python"), "python", tmp_path_factory.mktemp("python"), options)


def plain_bytes(image: LazyImage) -> int:
    return sum(stat.size for _, stat in image.walk() if stat.is_file)


def test_reading_400_mb_with_a_budget_of_100(node: str, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store", budget=BUDGET)
    with (
        open_image(node, store=store) as limited,
        open_image(node, store=tmp_path / "all") as whole,
        Watcher(store.root) as watcher,
    ):
        assert plain_bytes(whole) > 2 * BUDGET
        for _ in range(2):
            assert list(compare(limited, whole)) == []
        cost = limited.statistics
    print(f"largest store {watcher.largest / 2**20:.1f} MiB, {cost}")
    assert BUDGET * 0.8 < watcher.largest <= BUDGET + SPAN


def shell(*arguments: str, store: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LAMINA_STORE": str(store)}
    subprocess.run([sys.executable, "-m", "lamina", *arguments], env=environment, check=True)


@contextmanager
def mounted(image: str, folder: Path, store: Path, device: str) -> Iterator[Path]:
    folder.mkdir()
    budget = f"--store-budget={BUDGET}"
    shell("-q", "mount", "--device", device, budget, image, str(folder), store=store)
    try:
        yield folder
    finally:
        shell("-q", "umount", str(folder), store=store)


@pytest.mark.kernel
@pytest.mark.parametrize("device", ["fuse-blob", "fuse"])
def test_a_mount_with_a_budget(node: str, tmp_path: Path, device: str) -> None:
    require_root()
    store = tmp_path / "store"
    with (
        mounted(node, tmp_path / "mnt", store, device) as folder,
        open_image(node, store=tmp_path / "all") as whole,
        Watcher(store) as watcher,
    ):
        begin = time.monotonic()
        assert list(compare(FolderImage(folder), whole)) == []
        took_s = time.monotonic() - begin
    print(f"{device}: largest store {watcher.largest / 2**20:.1f} MiB, {took_s:.1f} s")
    assert BUDGET * 0.8 < watcher.largest <= BUDGET + SPAN


def test_two_images_of_one_base(node: str, python: str, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    digests: set[bytes] = set()
    with open_image(node, store=store) as first:
        ids = {blob.blob_id for blob in first.blobs}
        for blob in first.blobs:
            blob.ensure(0, blob.size_bytes)
            for chunk in range(blob.table.chunk_count):
                entry = blob.digests.find(chunk)
                assert entry is not None
                digests.add(entry.digest)
    with (
        open_image(python, store=store) as second,
        open_image(python, store=tmp_path / "all") as whole,
    ):
        assert ids.isdisjoint(blob.blob_id for blob in second.blobs)
        shared_plain = all_plain = 0
        for blob in second.blobs:
            for chunk in range(blob.table.chunk_count):
                entry = blob.digests.find(chunk)
                assert entry is not None
                all_plain += entry.uncompressed_size
                if entry.digest in digests:
                    shared_plain += entry.uncompressed_size
        assert list(compare(second, whole)) == []
        cost = second.statistics
        stored = sum(entry.compressed_data_size for entry in second.bootstrap.blobs)
    own = stored * (all_plain - shared_plain) / all_plain
    print(f"shared {shared_plain} of {all_plain} bytes; {stored} stored; {cost}")
    assert shared_plain > 50e6
    assert cost.copied_bytes >= 0.95 * shared_plain
    assert all_plain - cost.decoded_bytes >= 0.95 * shared_plain
    assert cost.fetched_bytes <= 1.1 * own + 0.05 * stored * shared_plain / all_plain
