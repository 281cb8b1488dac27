"""Images behind a pull-through cache that has their blobs not yet."""

from __future__ import annotations

import io
import logging
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from tests.support.cold_cache import ColdCache, cold_cache
from tests.support.native_images import BuiltImage, MemorySource, build_image, push_image
from tests.support.opening import open_image

from lamina.codec.compress import Compressor
from lamina.content import residency
from lamina.content.blob_set import BlobSet
from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, FetchError, NotFoundError, StoreError
from lamina.source import sequential_reads
from lamina.source.blob_source import Cost, RangesIgnoredError
from lamina.source.fetcher import Fetcher
from lamina.source.reader_priority import ReaderPriority, TokenBucket
from lamina.source.retry import DeadlineError, RetryPolicy
from lamina.source.sequential_read import PART_BYTES, SequentialRead
from lamina.source.sequential_reads import SequentialReads
from lamina.store.node import NodeStore

FILE_BYTES = 256 << 10
FILES = {b"%02d" % n: random.Random(n).randbytes(FILE_BYTES) for n in range(40)}


@pytest.fixture(scope="module")
def built() -> BuiltImage:
    return build_image(FILES, chunk_size=64 << 10, compressor=Compressor.NONE)


@pytest.fixture
def cache(tmp_path: Path, built: BuiltImage) -> Iterator[ColdCache]:
    push_image(built, tmp_path / "layout")
    with cold_cache(tmp_path / "layout") as cache:
        yield cache


@contextmanager
def opened(
    cache: ColdCache, folder: Path, budget: int | None = None, deadline_s: float = 30
) -> Iterator[LazyImage]:
    store = NodeStore(folder / "store", budget=budget)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMINA_RETRY", f"deadline_s={deadline_s}")
        with open_image(cache.reference(), store=store) as image:
            yield image


def passes(image: LazyImage) -> SequentialReads:
    assert isinstance(image.blobs, BlobSet)
    return image.blobs.fetcher.sequential_reads


def eventually(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < limit, "a minute is long for anything here"
        time.sleep(0.01)


def blob_digest(built: BuiltImage) -> str:
    return f"sha256:{built.blob_id}"


def test_pulling_reads_it_once_and_leaves_the_cache_warm(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    with opened(cache, tmp_path) as image:
        residency.pull(image)
        assert all(blob.complete for blob in image.blobs)
        for path, content in FILES.items():
            assert image.open(path).read() == content
    assert blob_digest(built) in cache.kept
    assert cache.sent_bytes < 1.6 * len(built.blob), "what was given up, and once the whole"
    before = len(cache.whole_answers)
    with opened(cache, tmp_path / "other") as image:
        residency.pull(image)
    assert len(cache.whole_answers) == before, "ranges are answered now"


def test_one_read_begins_a_pass_and_what_comes_by_is_kept(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    with opened(cache, tmp_path) as image:
        assert image.open("39").read() == FILES[b"39"]
        eventually(lambda: image.blobs[0].complete)
        image.wait_for_passes()
        asked = len(cache.registry.seen)
        for path, content in FILES.items():
            assert image.open(path).read() == content
        assert len(cache.registry.seen) == asked
        eventually(lambda: not passes(image)._reads)
    assert list((tmp_path / "store").glob(".spool.*")) == []
    assert cache.whole_answers.count(blob_digest(built)) == 2, "the range, and the pass"


def test_readers_meanwhile_get_right_bytes_or_a_clear_error(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    cache.pause_at = len(built.blob) // 2
    with opened(cache, tmp_path, deadline_s=3) as image:
        eventually(lambda: reads(image, b"02"))
        with pytest.raises(DeadlineError, match="only from its begin to its end") as failure:
            image.open("38").read()
        assert "lamina pull" in str(failure.value.hint)
        # It goes on nevertheless.
        eventually(lambda: reads(image, b"10"))
        cache.released.set()
        eventually(lambda: blob_digest(built) in cache.kept)
        eventually(lambda: reads(image, b"38"))


def test_ranges_are_asked_again_afterwards(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    with opened(cache, tmp_path) as image:
        image.open("00").read()
        image.wait_for_passes()
        blob = image.blobs[0]
        eventually(lambda: blob_digest(built) in cache.kept and not passes(image)._reads)
        answers = len(cache.whole_answers)
        asked = len(cache.registry.seen)
        assert blob.source.read_range(blob.blob_id, 5000, 100) == built.blob[5000:5100]
        assert (len(cache.registry.seen), len(cache.whole_answers)) == (asked + 1, answers)


def test_another_source_that_answers_ranges_is_preferred(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    """Before the cache in the order, or behind it."""
    other = MemorySource(built)
    with opened(cache, tmp_path) as image:
        blob = image.blobs[0]
        fetcher = blob.source
        fetcher.sources = (*fetcher.sources, other)
        fetcher._health[id(other)] = type(fetcher._health[id(fetcher.sources[0])])()
        for path, content in FILES.items():
            assert image.open(path).read() == content
        assert not passes(image)._reads
    assert cache.whole_answers.count(blob_digest(built)) == 1, "the first range"


def test_a_pass_that_breaks_off_is_taken_up_again(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    cache.break_at = 3 << 20
    with opened(cache, tmp_path) as image:
        residency.pull(image)
        for path, content in FILES.items():
            assert image.open(path).read() == content


def test_damage_on_the_way_is_never_other_bytes(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    cache.never_keeps = True
    cache.damage_at = built.pieces[70][0] + 5
    with opened(cache, tmp_path, deadline_s=5) as image:
        refused = set()
        for path, content in FILES.items():
            try:
                assert image.open(path).read() == content
            except Error:
                refused.add(path)
        assert b"%02d" % (70 * (64 << 10) // FILE_BYTES) in refused
        assert not image.blobs[0].complete
        cache.damage_at = None
        eventually(lambda: reads(image))


def reads(image: LazyImage, *paths: bytes) -> bool:
    """Whether some files, or all, are there with their content; never with another."""
    try:
        for path in paths or FILES:
            assert image.open(path).read() == FILES[path]
    except Error:
        return False
    return True


def test_a_place_that_never_answers_ranges(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    """Then what came by serves as long as the image is open, whatever was evicted."""
    cache.never_keeps = True
    with opened(cache, tmp_path) as image:
        assert image.open("39").read() == FILES[b"39"]
        eventually(lambda: image.blobs[0].complete)
        image.wait_for_passes()
        answers = cache.whole_answers.count(blob_digest(built))
        assert answers == 2
        for path, content in FILES.items():
            assert image.open(path).read() == content
        assert cache.whole_answers.count(blob_digest(built)) == answers


def test_without_room_for_what_comes_by_the_cache_is_filled_all_the_same(
    cache: ColdCache, built: BuiltImage, tmp_path: Path
) -> None:
    budget = 8 << 20
    assert budget // 2 < len(built.blob)
    with opened(cache, tmp_path, budget) as image:
        for path, content in FILES.items():
            assert image.open(path).read() == content
        assert image.blobs[0].cache.space.used_bytes() <= budget
    assert blob_digest(built) in cache.kept
    assert cache.whole_answers.count(blob_digest(built)) <= 4


def test_many_readers_begin_one_pass(cache: ColdCache, built: BuiltImage, tmp_path: Path) -> None:
    wrong: list[bytes] = []
    with opened(cache, tmp_path) as image:

        def read(path: bytes) -> None:
            if image.open(path).read() != FILES[path]:
                wrong.append(path)

        threads = [threading.Thread(target=read, args=(path,)) for path in FILES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        image.wait_for_passes()
    assert not wrong
    # Whether it is kept rests on how late the last of them asks beside the pass.
    assert cache.sent_bytes < 2 * len(built.blob) + 40 * (1 << 20)


def test_closing_ends_a_pass(cache: ColdCache, tmp_path: Path) -> None:
    cache.pause_at = 4 << 20
    with opened(cache, tmp_path) as image:
        image.open("00").read()
        threading.Timer(0.2, cache.released.set).start()
    assert not [each for each in threading.enumerate() if each.name == "lamina-whole"]
    assert not [each for each in threading.enumerate() if each.name == "lamina-keep"]
    assert list((tmp_path / "store").glob(".spool.*")) == []


def test_who_is_told(
    cache: ColdCache, built: BuiltImage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lamina"), opened(cache, tmp_path) as image:
        residency.pull(image)
    told = [line for line in caplog.messages if "read once to the end" in line]
    assert len(told) == 1
    assert built.blob_id in told[0]


class Granted(TokenBucket):
    """A bucket that has what it was given, and no clock."""

    def __init__(self, level: int) -> None:
        super().__init__(1)
        self.level = level
        self.granted = level

    def another(self) -> Granted:
        return self

    def take(self, size_bytes: int) -> float:
        if self.level < size_bytes:
            return 0.005
        self.level -= size_bytes
        return 0.0

    def grant(self, size_bytes: int) -> None:
        self.granted += size_bytes
        self.level += size_bytes


class Whole(io.BytesIO):
    """A blob that notes how much of it was read."""

    name, cost, can_stream, health = "whole", Cost.NETWORK, True, None

    def read_into(self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float) -> None:
        raise RangesIgnoredError("whole")

    def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:
        return self


def test_a_pass_keeps_the_rate_unless_somebody_waits() -> None:
    size, part = 4 << 20, PART_BYTES
    priority, source, bucket = ReaderPriority(), Whole(bytes(size)), Granted(1 << 20)
    passes = SequentialReads(priority, settle_s=0)
    passes.blob_sizes = {"id": size}
    passes.limit(bucket)
    assert passes.begin(source, "id")
    for _ in range(3):
        eventually(lambda: source.tell() > bucket.granted - part)
        eventually(lambda: bucket.level < part)
        assert source.tell() <= bucket.granted + part, "what it came by before it was paced"
        bucket.grant(part)
    assert passes.underway("id")
    with priority.foreground():
        passes.wait()
    assert source.closed
    passes.close()


def test_a_blob_of_unknown_size_is_not_read_whole() -> None:
    """Nobody could say when enough came."""
    passes = SequentialReads(ReaderPriority(), settle_s=0)
    assert not passes.begin(Whole(b"x"), "id")
    passes.blob_sizes = {"id": 1}
    assert not passes.begin(MemorySource(), "id"), "it can only answer ranges"
    passes.close()
    assert not passes.begin(Whole(b"x"), "id")


def test_a_pass_that_fails_is_not_begun_again_at_once() -> None:
    class Broken(Whole):
        opened = 0

        def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:
            self.opened += 1
            raise FetchError("broken")

    source = Broken()
    passes = SequentialReads(ReaderPriority(), settle_s=0)
    passes.blob_sizes = {"id": 100}
    fetcher = Fetcher([source], policy=RetryPolicy(attempts=1, passing_attempts=1, deadline_s=30))
    fetcher.sequential_reads = passes
    for _ in range(20):
        with pytest.raises(FetchError):
            fetcher.read_range("id", 0, 10)
    assert source.opened == 1
    passes.close()


@pytest.mark.parametrize("first", [NotFoundError("not there yet"), StoreError("no descriptor")])
def test_a_pass_may_be_begun_again_whatever_ended_it(
    first: Error, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Whole):
        opened = 0

        def open_sequential(self, blob_id: str, size_bytes: int) -> BinaryIO:
            self.opened += 1
            if self.opened == 1:
                raise first
            return io.BytesIO(bytes(range(100)))

    monkeypatch.setattr(sequential_reads, "FIRST_PAUSE_S", 0.0)
    passes, source = passes_over(100), Late()
    fetcher = Fetcher([source], policy=RetryPolicy(attempts=1, passing_attempts=1, deadline_s=30))
    fetcher.sequential_reads = passes
    with pytest.raises(type(first)):
        fetcher.read_range("id", 0, 10)
    assert fetcher.read_range("id", 5, 3) == bytes((5, 6, 7))
    passes.close()


def test_a_disk_that_fills_up_meanwhile_costs_no_pass(caplog: pytest.LogCaptureFixture) -> None:
    """What came by is lost, but the cache has the blob, and answers ranges of it."""

    class Warm(Whole):
        def read_into(
            self, blob_id: str, offset: int, buffer: memoryview, timeout_s: float
        ) -> None:
            if not self.closed:
                raise RangesIgnoredError("whole")

    source, passes = Warm(bytes(1 << 20)), passes_over(1 << 20)
    passes.open_spool = lambda _: open("/dev/full", "r+b", buffering=0)
    fetcher = Fetcher([source], policy=RetryPolicy(attempts=1, passing_attempts=1, deadline_s=30))
    fetcher.sequential_reads = passes
    assert fetcher.read_range("id", 0, 10) == bytes(10)
    assert source.closed
    assert any("No space left on device" in record.message for record in caplog.records)
    passes.close()


def test_forgetting_before_the_end() -> None:
    """Who has all bytes may be quicker than the pass that brought them."""
    last, go_on = threading.Event(), threading.Event()

    class Slow(Whole):
        def close(self) -> None:
            last.set()
            assert go_on.wait(60)
            super().close()

    passes = passes_over(100)
    assert passes.begin(Slow(bytes(100)), "id")
    assert last.wait(60)
    forgetting = threading.Thread(target=passes.forget, args=("id",))
    forgetting.start()
    assert passes.underway("id")
    go_on.set()
    forgetting.join()
    assert not passes._reads
    passes.close()


def test_forgetting_while_all_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    source, passes = Whole(bytes(100)), passes_over(100)
    assert passes.begin(source, "id")
    passes.wait()
    wait = SequentialRead.wait

    def closing(read: SequentialRead) -> None:
        passes.close()
        wait(read)

    monkeypatch.setattr(SequentialRead, "wait", closing)
    second = Whole(bytes(100))
    passes._reads[id(second), "id"] = next(iter(passes._reads.values()))
    passes.forget("id")


def test_closing_does_not_wait_for_a_source_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.source.sequential_read.PATIENCE_S", 0.05, raising=False)
    asked, answer, ended = threading.Event(), threading.Event(), threading.Event()

    class Silent(Whole):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.set()
            answer.wait(60)
            return super().read(size)

    class Spool(io.FileIO):
        def close(self) -> None:
            super().close()
            ended.set()

    passes = passes_over(1 << 20)
    spool = Spool(tmp_path / "spool", "w+b")
    passes.open_spool = lambda _: cast("BinaryIO", spool)
    assert passes.begin(Silent(bytes(1 << 20)), "id")
    assert asked.wait(60)
    (read,) = passes._reads.values()
    passes.close()
    assert not ended.is_set(), "it waited, or took the file away from under the pass"
    with pytest.raises(FetchError, match="closed"):
        read.read_into(0, memoryview(bytearray(1)), 20)
    assert not passes.underway("id")
    answer.set()
    assert ended.wait(60)
    read.wait()


def passes_over(size_bytes: int) -> SequentialReads:
    """Passes over one blob, of which all is kept."""
    passes = SequentialReads(ReaderPriority(), settle_s=0)
    passes.blob_sizes = {"id": size_bytes}
    passes.open_spool = lambda _: tempfile.TemporaryFile()
    return passes
