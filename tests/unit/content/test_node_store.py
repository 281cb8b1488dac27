"""Images over a node store with a budget, over a store that another image filled, after a power
cut.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.disk import disk_usage
from tests.support.native_images import (
    BuiltImage,
    MemorySource,
    build_image,
    image_files,
    open_bootstrap,
    some_bytes,
)
from tests.support.range_source import RangeSource

from lamina.codec.compress import Compressor
from lamina.content.blob_set import zones_of
from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, IntegrityError, StoreError
from lamina.source.blob_source import BlobSource
from lamina.source.fetcher import Fetcher
from lamina.source.network_estimate import NetworkEstimate, NetworkEstimator
from lamina.source.parallel import Parallel
from lamina.store.node import NodeStore

CHUNK = 64 << 10
SPAN = 1 << 20


def random_files(seed: int, count: int, size: int) -> dict[bytes, bytes]:
    chance = random.Random(seed)
    return {b"f/%03d" % n: chance.randbytes(chance.randrange(size)) for n in range(count)}


@contextmanager
def opened(
    folder: Path, built: BuiltImage, store: NodeStore, source: BlobSource | None = None
) -> Iterator[LazyImage]:
    folder.mkdir(exist_ok=True)
    if not (folder / "image.boot").exists():
        image_files(folder, built)
    source = source or MemorySource(built)
    with open_bootstrap(folder / "image.boot", source, store=store) as image:
        yield image


@pytest.fixture(scope="module")
def large() -> BuiltImage:
    files = random_files(1, 60, 1 << 20) | {b"s/%03d" % n: some_bytes(900, n) for n in range(300)}
    return build_image(files, chunk_size=CHUNK, pack_size=CHUNK, compressor=Compressor.NONE)


def test_zones_cut_between_pieces(large: BuiltImage, tmp_path: Path) -> None:
    with opened(tmp_path / "image", large, NodeStore(tmp_path / "store")) as image:
        table = image.blobs[0].table
        zones = zones_of(table)
        assert 20 <= len(zones) <= 40
        for first, offset in zones:
            assert table.piece_holding(first).first == first
            assert table.chunk_extent(first)[0] == offset


def test_reading_all_of_an_image_that_is_larger_than_the_budget(
    large: BuiltImage, tmp_path: Path
) -> None:
    budget = 8 << 20
    store = NodeStore(tmp_path / "store", budget=budget)
    largest = 0
    with opened(tmp_path / "image", large, store) as image:
        assert image.blobs[0].size_bytes > 3 * budget
        for turn in range(2):
            for path, content in large.contents.items():
                assert image.open(path).read() == content, turn
                largest = max(largest, disk_usage(store.root))
        assert image.statistics.fetched_bytes > sum(map(len, large.contents.values()))
    assert budget * 0.7 < largest <= budget + SPAN


def test_many_readers_over_a_small_budget(large: BuiltImage, tmp_path: Path) -> None:
    budget = 12 << 20
    store = NodeStore(tmp_path / "store", budget=budget)
    wrong: list[object] = []
    paths = list(large.contents)

    with opened(tmp_path / "image", large, store) as image:

        def work(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(40):
                path = chance.choice(paths)
                try:
                    if image.open(path).read() != large.contents[path]:
                        wrong.append(path)
                except Error as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert disk_usage(store.root) <= budget + 2 * SPAN
            threads[0].join(0.05)
        for thread in threads:
            thread.join(60)
    assert wrong == []


def test_a_range_larger_than_the_budget_can_be_asked_for(large: BuiltImage, tmp_path: Path) -> None:
    budget = 8 << 20
    store = NodeStore(tmp_path / "store", budget=budget)
    with opened(tmp_path / "image", large, store) as image:
        blob = image.blobs[0]
        blob.ensure(0, blob.size_bytes)
        assert not blob.complete
        assert disk_usage(store.root) <= budget + SPAN


def test_a_budget_too_small_for_anything_is_an_error(large: BuiltImage, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store", budget=1 << 20)
    with (
        opened(tmp_path / "image", large, store) as image,
        pytest.raises(StoreError, match="budget"),
    ):
        image.open("f/000").read()


def base_and_two() -> tuple[BuiltImage, BuiltImage, int]:
    """Two images of a common base whose blobs have nothing in common but the chunks' content."""
    base = random_files(7, 20, 300_000) | {b"s/%03d" % n: some_bytes(900, n) for n in range(200)}
    shared = sum(map(len, base.values()))
    one = build_image(base | {b"app": some_bytes(50_000, 91)}, chunk_size=CHUNK, pack_size=CHUNK)
    names = list(base)
    random.Random(3).shuffle(names)
    other = {name: base[name] for name in names} | {b"app": some_bytes(70_000, 92)}
    two = build_image(
        other, chunk_size=CHUNK, pack_size=CHUNK // 2, compressor=Compressor.LZ4_BLOCK
    )
    return one, two, shared


def read_all(image: LazyImage, built: BuiltImage) -> None:
    for path, content in built.contents.items():
        assert image.open(path).read() == content


def test_the_second_image_of_a_base_fetches_next_to_nothing(tmp_path: Path) -> None:
    one, two, shared = base_and_two()
    store = NodeStore(tmp_path / "store")
    with opened(tmp_path / "one", one, store) as image:
        read_all(image, one)
    with opened(tmp_path / "two", two, store) as image:
        read_all(image, two)
        own = len(two.contents[b"app"])
        assert image.statistics.fetched_bytes <= own + 0.05 * shared
        assert image.statistics.copied_bytes >= 0.95 * shared
        assert image.blobs[0].blob_id != one.blob_id


def test_two_files_of_one_content_are_fetched_once(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(CHUNK)
    built = build_image({b"a": content, b"b": content}, chunk_size=CHUNK)
    source = MemorySource(built)
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), source) as image:
        read_all(image, built)
        assert len(source.requests) == 2, "the chunk table, and one chunk"


def test_what_a_neighbour_lost_or_lies_about_is_fetched(tmp_path: Path) -> None:
    one, two, _ = base_and_two()
    store = NodeStore(tmp_path / "store")
    with opened(tmp_path / "one", one, store) as image:
        read_all(image, one)
        path = image.blobs[0].path
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 8192):
        content[position] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    with opened(tmp_path / "two", two, store) as image:
        read_all(image, two)
        assert image.statistics.fetched_bytes > 1_000_000


def test_the_file_of_a_blob_that_a_kernel_fills_is_not_read(tmp_path: Path) -> None:
    one, two, _ = base_and_two()
    store = NodeStore(tmp_path / "store")
    with opened(tmp_path / "one", one, store) as first:
        first.open("s/000").read()
        first.blobs[0].hold()
        with opened(tmp_path / "two", two, store) as second:
            second.open("s/000").read()
            assert second.statistics.copied_bytes == 0
            first.blobs[0].ensure(0, 1 << 40)
            assert first.blobs[0].complete
            second.open("f/000").read()
            assert second.statistics.copied_bytes > 0


def reboot(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    boot_id = bytes([number]) * 16
    monkeypatch.setattr("lamina.store.node.current_boot_id", lambda: boot_id)


def cut_power(damage: Callable[[bytearray], None], image: LazyImage) -> Path:
    """Leave the cache file as a power cut would: no clean flag, and damaged in places."""
    path = image.blobs[0].path
    content = bytearray(path.read_bytes())
    damage(content)
    with path.open("r+b") as file:
        file.write(content)
    return path


def test_after_a_power_cut_chunks_are_verified_and_not_fetched_again(
    large: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeStore(tmp_path / "store")
    with opened(tmp_path / "image", large, store) as image:
        for number in range(40):
            image.open(b"f/%03d" % number).read()
        cut_power(lambda content: None, image)
    reboot(monkeypatch, 1)
    source = MemorySource(large)
    with opened(tmp_path / "image", large, store, source) as image:
        assert image.blobs[0].cache.ready_count == 0
        before = len(source.requests)
        for number in range(40):
            path = b"f/%03d" % number
            assert image.open(path).read() == large.contents[path]
        assert len(source.requests) == before
        assert image.statistics.salvaged_bytes > 10 << 20
        read_all(image, large)


def test_what_a_power_cut_damaged_is_fetched_again(
    large: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeStore(tmp_path / "store")

    def damage(content: bytearray) -> None:
        content[: CHUNK * 3] = bytes(CHUNK * 3)
        content[CHUNK * 9 + 5] ^= 0x40

    with opened(tmp_path / "image", large, store) as image:
        for number in range(40):
            image.open(b"f/%03d" % number).read()
        cut_power(damage, image)
    reboot(monkeypatch, 1)
    with opened(tmp_path / "image", large, store) as image:
        for number in range(40):
            path = b"f/%03d" % number
            assert image.open(path).read() == large.contents[path]
        assert 0 < image.statistics.fetched_bytes <= 6 * CHUNK


def test_a_clean_image_is_believed_after_a_boot(
    large: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeStore(tmp_path / "store")
    with opened(tmp_path / "image", large, store) as image:
        image.blobs[0].ensure(0, 1 << 40)
    reboot(monkeypatch, 1)
    with opened(tmp_path / "image", large, store) as image:
        assert image.blobs[0].complete
        read_all(image, large)
        assert image.statistics.salvaged_bytes == image.statistics.decoded_bytes == 0


class Damaged(RangeSource):
    """A source that flips a bit of all the data that it sends, though not of the chunk table."""

    name = "liar"

    def __init__(self, built: BuiltImage) -> None:
        self.source = MemorySource(built)
        self.end = sum(built.pieces[-1])

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        data = bytearray(self.source.read_range(blob_id, offset, size_bytes))
        if offset < self.end:
            data[size_bytes // 2] ^= 1
        return bytes(data)


def test_a_liar_among_the_sources(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built = build_image(random_files(2, 5, 100_000), chunk_size=CHUNK)
    liar, good = Damaged(built), MemorySource(built)
    now = time.monotonic()
    fetcher = Fetcher([liar, good], clock=lambda: now)
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), fetcher) as image:
        read_all(image, built)
    assert len(liar.source.requests) < len(good.requests), "it is passed over for a while"
    assert "liar sent damaged data, memory the right: " in caplog.text


def test_liars_only(tmp_path: Path) -> None:
    built = build_image(random_files(2, 5, 100_000), chunk_size=CHUNK)
    fetcher = Fetcher([Damaged(built), Damaged(built)])
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), fetcher) as image:
        with pytest.raises(IntegrityError, match=built.blob_id):
            read_all(image, built)
        assert image.blobs[0].cache.ready_count == 0


def linked(source: BlobSource, link: NetworkEstimate) -> Fetcher:
    """A fetcher that takes its link for this one, whatever it measures."""
    fetcher = Fetcher([source], estimator=NetworkEstimator(link))
    fetcher.estimator.add = lambda *_: None  # type: ignore[method-assign]
    return fetcher


def far_away(source: BlobSource) -> Fetcher:
    return linked(source, NetworkEstimate(0.05, 3e6))


def test_far_away_neighbours_come_along(tmp_path: Path) -> None:
    built = build_image({b"big": random.Random(1).randbytes(1 << 20)}, chunk_size=CHUNK // 4)
    far = far_away(MemorySource(built))
    near = linked(MemorySource(built), NetworkEstimate(0.0001, 1e9))
    counts = []
    for name, fetcher in (("far", far), ("near", near)):
        store = NodeStore(tmp_path / name)
        with opened(tmp_path / "image", built, store, fetcher) as image:
            image.blobs[0].ensure(0, 1)
            # What nobody waits for is kept a little later; who wants it waits for that.
            image.blobs[0].ensure(CHUNK if name == "far" else 0, 1)
            counts.append(image.blobs[0].cache.ready_count)
            assert image.statistics.requests == 1
            for number in range(0, 1 << 20, CHUNK):
                image.blobs[0].ensure(number, 1)
            counts.append(image.statistics.requests)
            assert (image.statistics.ahead_bytes > 0) == (name == "far")
    assert counts[0] == 5, "75 kB behind what was asked for"
    assert counts[2] == 1, "nothing more than asked"
    assert counts[1] < counts[3] == 16


def test_nobody_waits_for_what_was_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_image({b"big": random.Random(1).randbytes(1 << 20)}, chunk_size=CHUNK // 4)
    fetcher = far_away(MemorySource(built))
    jobs: list[Callable[[], None]] = []
    monkeypatch.setattr(Parallel, "later", lambda _self, job: jobs.append(job))
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), fetcher) as image:
        blob = image.blobs[0]
        blob.ensure(0, 1)
        assert blob.cache.ready_count == 1
        reader = threading.Thread(target=blob.ensure, args=(CHUNK // 4, 1))
        reader.start()
        time.sleep(0.05)
        assert blob.cache.ready_count == 1, "it waits, and does not fetch again"
        for job in jobs:
            job()
        reader.join(60)
        assert blob.cache.ready_count == 5
        assert image.statistics.requests == 1


def test_damage_of_what_was_not_asked_for_is_told_to_who_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build_image({b"big": random.Random(1).randbytes(1 << 20)}, chunk_size=CHUNK // 4)
    inner = MemorySource(built)

    class Late(RangeSource):
        """It flips a bit behind the first piece of what it sends."""

        name = "late"

        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            data = bytearray(inner.read_range(blob_id, offset, size_bytes))
            if offset < sum(built.pieces[-1]) and size_bytes > CHUNK // 2:
                data[CHUNK // 2] ^= 1
            return bytes(data)

    fetcher = far_away(Late())
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), fetcher) as image:
        blob = image.blobs[0]
        blob.ensure(0, 1)
        blob.ensure(2 * CHUNK // 4, 1)
        assert blob.cache.is_ready(2), "asked for alone, it is whole"
        assert "ERROR" not in caplog.text


def test_scattered_runs_are_fetched_together(tmp_path: Path) -> None:
    files = random_files(5, 4, 40_000) | {b"big": random.Random(1).randbytes(4 * CHUNK)}
    built = build_image(files, chunk_size=CHUNK, compressor=Compressor.NONE)
    barrier = threading.Barrier(3, timeout=60)
    inner = MemorySource(built)

    class Together(RangeSource):
        waiting = False

        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            if self.waiting:
                barrier.wait()
            return inner.read_range(blob_id, offset, size_bytes)

    source = Together()
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), source) as image:
        offsets = [chunk.blob_offset for chunk in image.chunks("big")]
        assert not image.blobs[0].complete
        source.waiting = True
        image.ensure([(0, offsets[0], 1), (0, offsets[2], 1), (0, 0, 1)])
        assert image.statistics.requests == 3
