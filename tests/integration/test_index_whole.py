"""A layer of one large zstd frame, which has no access point but its begin."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import zstandard

from lamina.blob.layout import MAX_ZRAN_INPUT, MAX_ZRAN_OUTPUT
from lamina.build.source_image import open_source_image
from lamina.content.lazy_image import LazyImage
from lamina.content.residency import make_resident
from lamina.content.sequential_layer import decode_sequentially
from lamina.content.verify_blob import verify_blob
from lamina.erofs.check import check_bootstrap
from lamina.errors import IntegrityError
from lamina.image.compare import compare
from lamina.store.node import NodeStore
from tests.integration.test_index import index, ordinary_image
from tests.support.asked_once import asked_once
from tests.support.index_layers import content
from tests.support.layers import Item, folder, oci_layout, tar_bytes
from tests.support.lazy_layers import skippable_frame
from tests.support.opening import open_image
from tests.support.range_source import RangeSource

BIG_BYTES = MAX_ZRAN_OUTPUT + 5_000_001


def large_layer() -> bytes:
    big = (content(1 << 20, 3) * 30)[:BIG_BYTES]
    items = [folder("d"), Item("d/first", content(70_000, 1)), Item("d/big", big)]
    items += [Item(f"d/{number}", content(3000 + number, number)) for number in range(40)]
    return tar_bytes(items)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    place = tmp_path / "layout"
    oci_layout(place, [large_layer()], "zstd")
    index(f"oci:{place}:latest")
    return place


def opened(layout: Path, store: Path) -> LazyImage:
    return open_image(f"oci:{layout}:index", store=store)


def test_it_is_decompressed_once_and_as_far_as_needed(layout: Path, tmp_path: Path) -> None:
    with (
        opened(layout, tmp_path / "store") as image,
        open_source_image(f"oci:{layout}:latest") as wanted,
    ):
        blob = image.blobs[0]
        assert blob.is_read_whole
        with image.open("/d/first") as file:
            assert file.read() == content(70_000, 1)
        assert not blob.complete
        check_bootstrap(image.bootstrap_path.read_bytes())
        assert verify_blob(blob, lambda _: None) > 1 << 20
        assert not blob.complete
        assert [str(one) for one in compare(image, wanted)] == []
        assert blob.complete
        assert image.statistics.fetched_bytes == blob.table.entry.compressed_size
    with opened(layout, tmp_path / "store") as image:
        with image.open("/d/39") as file:
            assert file.read() == content(3039, 39)
        assert image.statistics.fetched_bytes == 0


def test_readers_at_all_ends_share_one_pass(layout: Path, tmp_path: Path) -> None:
    with opened(layout, tmp_path / "store") as image:
        files = [stat for _, stat in image.walk() if stat.is_file]
        random.Random(1).shuffle(files)
        found: dict[bytes, bytes] = {}

        def read(part: int) -> None:
            for stat in files[part::6]:
                found[stat.path] = image.pread(stat, 0, stat.size)

        threads = [threading.Thread(target=read, args=(part,)) for part in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for number in range(40):
            assert found[f"/d/{number}".encode()] == content(3000 + number, number)
        assert image.statistics.fetched_bytes == image.blobs[0].table.entry.compressed_size


def test_it_can_be_made_resident(layout: Path, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_image(f"oci:{layout}:index", store=store) as image:
        make_resident(image, store, f"oci:{layout}:index")
        assert image.blobs[0].complete


def test_frames_that_lie_far_apart_are_read_whole(tmp_path: Path) -> None:
    gap = skippable_frame(bytes(MAX_ZRAN_INPUT))
    whole = tar_bytes([Item("a", content(90_000, 1)), Item("b", content(90_000, 2))])
    cut = whole.index(content(90_000, 1)) + 90_000

    def pack(data: bytes) -> bytes:
        return zstandard.compress(data[:cut]) + gap + zstandard.compress(data[cut:])

    reference = ordinary_image(tmp_path / "layout", pack, [whole])
    index(reference)
    with (
        open_image(reference, store=tmp_path / "store") as image,
        open_source_image(reference) as wanted,
    ):
        assert image.blobs[0].is_read_whole
        assert [str(one) for one in compare(image, wanted)] == []


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_damage_is_an_integrity_error(layout: Path, tmp_path: Path, share: float) -> None:
    with opened(layout, tmp_path / "store") as image:
        blob_id = image.blobs[0].blob_id
        path = layout / "blobs" / "sha256" / blob_id
        data = bytearray(path.read_bytes())
        data[int(len(data) * share)] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=blob_id):
            image.blobs[0].ensure(0, image.blobs[0].size_bytes)


def test_a_layer_with_other_bytes_behind_the_last_chunk_is_found_out(
    layout: Path, tmp_path: Path
) -> None:
    with opened(layout, tmp_path / "store") as image:
        blob_id = image.blobs[0].blob_id
        path = layout / "blobs" / "sha256" / blob_id
        other = large_layer()[:-1] + b"x"
        data = zstandard.compress(other)
        size = image.blobs[0].table.entry.compressed_size
        path.write_bytes(data[:size].ljust(size, b"\0"))
        with pytest.raises(IntegrityError, match=r"another digest|zstd"):
            image.blobs[0].ensure(0, image.blobs[0].size_bytes)


def test_any_damage_is_found_out(layout: Path, tmp_path: Path) -> None:
    with opened(layout, tmp_path / "store") as image:
        blob = image.blobs[0]
        data = (layout / "blobs" / "sha256" / blob.blob_id).read_bytes()
        dice = random.Random(5)
        for _ in range(40):
            damaged = bytearray(data)
            damaged[dice.randrange(len(data))] ^= dice.randint(1, 255)
            with pytest.raises(IntegrityError):
                for _ in decode_sequentially(
                    blob.table, blob.digests, asked_once(Fake(damaged)), lambda _: None
                ):
                    pass


class Fake(RangeSource):
    """A source of one blob."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        return bytes(self._data[offset : offset + size_bytes])
