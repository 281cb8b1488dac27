"""The windows of an index, which are most of it, are read when they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.blob.layout import MAX_ZRAN_DICTIONARY
from lamina.content.blob_set import BlobSet
from lamina.content.lazy_image import LazyImage
from lamina.content.window_frames import LEAST_BYTES
from lamina.errors import FormatError, IntegrityError
from lamina.oci.manifest import INDEX_TABLE_HEAD, Descriptor, parse_image_manifest
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.registry.repository_source import RepositorySource
from lamina.source.network_estimate import UNKNOWN, NetworkEstimator
from tests.integration.test_index import index, ordinary_image
from tests.support.index_layers import content, lower_layer
from tests.support.opening import open_image
from tests.support.range_source import RangeSource

BIG = content(3_400_001, 7)


class Counting(RangeSource):
    """A source of a layout's blobs that notes what is asked of them."""

    name = "counting"

    def __init__(self, source: RepositorySource) -> None:
        self._source = source
        self.asked: dict[str, int] = {}

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        self.asked[blob_id] = self.asked.get(blob_id, 0) + size_bytes
        buffer = bytearray(size_bytes)
        self._source.read_into(blob_id, offset, memoryview(buffer), 30)
        return bytes(buffer)


def tables(layout: Path) -> list[Descriptor]:
    with open_repository(parse_reference(f"oci:{layout}:index")) as repository:
        _, data = repository.manifest()
    return list(parse_image_manifest(data).layers[:-1])


def whole(image: LazyImage) -> bytes:
    with image.open("/d/big") as file:
        return file.read()


@pytest.fixture
def unknown_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """What more is worth fetching depends on the link, which is another on each machine."""
    monkeypatch.setattr(NetworkEstimator, "estimate", UNKNOWN)


@pytest.mark.usefixtures("unknown_link")
def test_opening_and_one_read_need_little_of_a_table(tmp_path: Path) -> None:
    layout, store = tmp_path / "layout", tmp_path / "store"
    reference = ordinary_image(layout, "gzip -6", [lower_layer()])
    index(reference, spacing_bytes=1)
    (table,) = tables(layout)
    head_bytes = int(table.annotations[INDEX_TABLE_HEAD])
    assert head_bytes < table.size / 4
    with open_repository(parse_reference(reference)) as repository:
        for expected in (head_bytes, 0):
            source = Counting(RepositorySource(repository))
            with open_image(reference, store=store, sources=[source]) as image:
                assert image.blobs[0].table.chunk_count
                assert source.asked.get(table.hex, 0) == expected, "a second opening has the head"
                assert image.open("/d/100").read() == content(3700, 100)
                # At most the least that a request fetches, or the one window, if it is longer.
                windows = source.asked.get(table.hex, 0) - expected
                assert windows <= max(LEAST_BYTES, MAX_ZRAN_DICTIONARY)
                assert bool(windows) == bool(expected), "the second finds the file in the store"
                if not expected:
                    assert whole(image) == BIG


@pytest.mark.usefixtures("unknown_link")
def test_damage_is_not_kept_for_the_next_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Chunks behind one access point need the same bytes, and what was fetched is used again."""
    layout = tmp_path / "layout"
    reference = ordinary_image(layout, "gzip -6", [lower_layer()])
    index(reference, spacing_bytes=1 << 20)

    class Damaged(Counting):
        def __init__(self, source: RepositorySource) -> None:
            super().__init__(source)
            self.damage = True

        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            data = bytearray(super().read_range(blob_id, offset, size_bytes))
            if self.damage and blob_id == image.bootstrap.blobs[0].blob_id:
                for offset in range(len(data) // 4, len(data), 50):
                    data[offset] ^= 1
            return bytes(data)

    with open_repository(parse_reference(reference)) as repository:
        source = Damaged(RepositorySource(repository))
        with open_image(reference, store=tmp_path / "store", sources=[source]) as image:
            stat = image.stat("/d/big")
            assert image.pread(stat, 0, 100) == BIG[:100]
            told = [line for line in caplog.messages if "counting sent damaged data" in line]
            assert len(told) == 1
            source.damage = False
            for start in range(0, len(BIG), 128 << 10):
                assert image.pread(stat, start, 100) == BIG[start : start + 100]
    assert [line for line in caplog.messages if "sent damaged data" in line] == told


def test_windows_that_are_damaged_are_never_other_bytes(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    reference = ordinary_image(layout, "gzip -6", [lower_layer()])
    index(reference, spacing_bytes=1)
    (table,) = tables(layout)
    head_bytes = int(table.annotations[INDEX_TABLE_HEAD])
    path = layout / "blobs" / "sha256" / table.hex
    right = path.read_bytes()
    path.chmod(0o644)
    refused = 0
    for number in range(6):
        damaged = bytearray(right)
        for offset in range(head_bytes + 11 * number, len(right) - 4096, 700):
            damaged[offset] ^= 1 << number
        path.write_bytes(damaged)
        store = tmp_path / f"store-{number}"
        with open_image(reference, store=store) as image:
            try:
                assert whole(image) == BIG
            except IntegrityError:
                refused += 1
            # Whoever sent them may send others now.
            path.write_bytes(right)
            assert whole(image) == BIG
    assert refused


def test_windows_that_do_not_come_are_no_damage(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    reference = ordinary_image(layout, "gzip -6", [lower_layer()])
    index(reference, spacing_bytes=1)
    (table,) = tables(layout)
    path = layout / "blobs" / "sha256" / table.hex
    with open_image(reference, store=tmp_path / "store") as image:
        assert image.blobs[0].table.chunk_count
        away = path.rename(tmp_path / "away")
        with pytest.raises(Exception, match=table.hex) as failure:
            whole(image)
        assert not isinstance(failure.value, IntegrityError)
        away.rename(path)
        assert whole(image) == BIG


def test_a_head_that_is_measured_wrongly(tmp_path: Path) -> None:
    """Whoever may push an index may write anything into its manifest."""
    layout = tmp_path / "layout"
    reference = ordinary_image(layout, "gzip -6", [lower_layer()])
    index(reference, spacing_bytes=1)
    (table,) = tables(layout)
    for size in (1, int(table.annotations[INDEX_TABLE_HEAD]) + 1, 10_000_000_000):
        with open_image(reference, store=tmp_path / "store") as image:
            assert isinstance(image.blobs, BlobSet)
            image.blobs.tables.heads = {image.bootstrap.blobs[0].blob_id: size}
            with pytest.raises(FormatError, match="directory"):
                whole(image)
