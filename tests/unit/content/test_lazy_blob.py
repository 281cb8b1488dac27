from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.asked_once import asked_once
from tests.support.native_images import BuiltImage, MemorySource, build_image, some_bytes
from tests.support.range_source import RangeSource

from lamina.blob.table import ChunkTable
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.content.lazy_blob import LazyBlob
from lamina.erofs.reader import Bootstrap
from lamina.errors import Error, FetchError, FormatError, IntegrityError, StoreError
from lamina.source.blob_source import BlobSource
from lamina.source.network_estimate import UNKNOWN, NetworkEstimator
from lamina.source.reader_priority import ReaderPriority
from lamina.source.single_flight import Flight
from lamina.store import cache_blob
from lamina.store.node import NodeStore

PACK = 4096
FILES = {
    b"big": some_bytes(40_000, 1),
    b"small/one": some_bytes(700, 2),
    b"small/two": some_bytes(900, 3),
    b"tail": some_bytes(4097, 4),
}
KINDS = [
    (Compressor.NONE, 0, Digester.BLAKE3),
    (Compressor.ZSTD, PACK, Digester.BLAKE3),
    (Compressor.LZ4_BLOCK, PACK, Digester.SHA256),
    (Compressor.GZIP, 0, Digester.SHA256),
]


def plaintext(image: BuiltImage, bootstrap: Bootstrap) -> bytes:
    """The whole uncompressed address space, made from the files."""
    space = bytearray(bootstrap.blobs[0].uncompressed_size)
    for path, content in image.contents.items():
        inode = bootstrap.inode(bootstrap.root_nid)
        for name in path.split(b"/"):
            nid = bootstrap.lookup(inode, name)
            assert nid is not None
            inode = bootstrap.inode(nid)
        for number, chunk in enumerate(bootstrap.chunks(inode)):
            part = content[number * bootstrap.chunk_size : (number + 1) * bootstrap.chunk_size]
            start = chunk.block_address * 4096
            space[start : start + len(part)] = part
    return bytes(space)


@contextmanager
def opened(
    image: BuiltImage, source: BlobSource, folder: Path, *, identity: bytes = b""
) -> Iterator[LazyBlob]:
    with Bootstrap(image.bootstrap) as bootstrap:
        entry = bootstrap.blobs[0]
        table = ChunkTable.from_meta(image.meta, entry)
        cache = NodeStore(folder).blob(
            entry.blob_id, entry.uncompressed_size, entry.chunk_count, identity=identity
        )
        with LazyBlob(table, bootstrap.chunk_digests(0), asked_once(source), cache) as blob:
            yield blob


def read(blob: LazyBlob, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: blob.read_into(offset, buffer)])


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_image(FILES, pack_size=PACK)


@pytest.mark.parametrize(("compressor", "pack_size", "digester"), KINDS)
def test_all_bytes_are_the_files_bytes(
    tmp_path: Path, compressor: Compressor, pack_size: int, digester: Digester
) -> None:
    image = build_image(FILES, compressor=compressor, pack_size=pack_size, digester=digester)
    with opened(image, MemorySource(image), tmp_path) as blob:
        wanted = plaintext(image, Bootstrap(image.bootstrap))
        assert not blob.complete
        assert read(blob, 0, blob.size_bytes) == wanted
        assert blob.complete
        assert blob.path.read_bytes() == wanted
        assert read(blob, blob.size_bytes - 5, 100) == wanted[-5:]
        assert read(blob, blob.size_bytes + 5, 100) == b""


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 20_000)), max_size=6), st.data())
def test_random_reads(
    image: BuiltImage,
    tmp_path_factory: pytest.TempPathFactory,
    reads: list[tuple[int, int]],
    data: st.DataObject,
) -> None:
    wanted = plaintext(image, Bootstrap(image.bootstrap))
    with opened(image, MemorySource(image), tmp_path_factory.mktemp("store")) as blob:
        for offset, size in reads:
            assert read(blob, offset, size) == wanted[offset : offset + size]


def test_only_what_is_asked_for_is_fetched_and_only_once(image: BuiltImage, tmp_path: Path) -> None:
    source = MemorySource(image)
    with opened(image, source, tmp_path) as blob:
        blob.ensure(8192, 1)
        assert source.requests == [image.pieces[2]]
        blob.ensure(8192, 4096)
        blob.ensure(8200, 0)
        assert len(source.requests) == 1
        assert blob.statistics.requests == 1
        assert blob.statistics.fetched_bytes == image.pieces[2][1]
        assert blob.statistics.decoded_pieces == 1
    again = MemorySource(image)
    with opened(image, again, tmp_path) as blob:
        blob.ensure(8192, 4096)
        assert again.requests == [], "another opening finds it in the store"


def test_the_background_waits_while_a_reader_does(
    image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for its own prefetching, though."""
    # On a machine that is slow, what is read next would come with what was read first.
    monkeypatch.setattr(NetworkEstimator, "estimate", UNKNOWN)
    priority, marks = ReaderPriority(), []

    class Looking(MemorySource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            marks.append(priority.has_readers)
            return super().read_range(blob_id, offset, size_bytes)

    with opened(image, Looking(image), tmp_path) as blob:
        blob.source.priority = priority
        read(blob, 0, 100)
        blob.ensure(8192, 1)
        blob.ensure(16384, 1, background=True)
    assert marks == [True, True, False]
    assert not priority.has_readers


def test_neighbours_come_in_one_request(image: BuiltImage, tmp_path: Path) -> None:
    source = MemorySource(image)
    with opened(image, source, tmp_path) as blob:
        blob.ensure(4096, 3 * 4096)
        start, _ = image.pieces[1]
        last, size = image.pieces[3]
        assert source.requests == [(start, last + size - start)]
        assert blob.statistics.decoded_pieces == 3


def test_a_pack_is_one_piece(image: BuiltImage, tmp_path: Path) -> None:
    source = MemorySource(image)
    with opened(image, source, tmp_path) as blob:
        address = blob.table.chunk_extent(blob.table.chunk_count - 1)[0]
        blob.ensure(address, 1)
        assert source.requests == [image.pieces[-1]]
        blob.ensure(address - 4096, 4096)
        assert len(source.requests) == 1


def test_a_big_range_goes_over_several_connections(tmp_path: Path) -> None:
    content = bytes(os_random(6 << 20))
    image = build_image({b"big": content}, chunk_size=1 << 18, compressor=Compressor.NONE)
    barrier = threading.Barrier(4, timeout=60)
    source = MemorySource(image)

    class Together(RangeSource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            if len(source.requests) < 4:
                data = source.read_range(blob_id, offset, size_bytes)
                barrier.wait()
                return data
            return source.read_range(blob_id, offset, size_bytes)

    with opened(image, Together(), tmp_path) as blob:
        assert read(blob, 0, len(content)) == content
        assert 4 <= blob.statistics.requests <= 8


def os_random(size: int) -> bytes:
    import random

    return random.Random(1).randbytes(size)


class Damaging(RangeSource):
    """Delivers other bytes, for a number of times."""

    name = "liar"

    def __init__(self, image: BuiltImage, change: Callable[[bytes], bytes], times: int) -> None:
        self.source = MemorySource(image)
        self.change = change
        self.times = times

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        data = self.source.read_range(blob_id, offset, size_bytes)
        if self.times:
            self.times -= 1
            return self.change(data)
        return data


def flip(position: int, change: int = 1) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        position_here = position % len(data)
        damaged = bytearray(data)
        damaged[position_here] ^= change
        return bytes(damaged)

    return damage


@pytest.mark.parametrize(("compressor", "pack_size", "digester"), KINDS)
def test_a_flipped_byte_anywhere_is_an_error_and_never_other_bytes(
    tmp_path: Path, compressor: Compressor, pack_size: int, digester: Digester
) -> None:
    image = build_image(
        {b"file": some_bytes(400, 9), b"small": some_bytes(150, 8), b"little": some_bytes(90, 7)},
        compressor=compressor,
        pack_size=pack_size,
        digester=digester,
    )
    wanted = plaintext(image, Bootstrap(image.bootstrap))
    position = -1
    for offset, size in image.pieces:
        for position in range(offset, offset + size):
            blob_bytes = bytearray(image.blob)
            blob_bytes[position] ^= 1 << position % 8
            source = MemorySource(image)
            source.blobs[image.blob_id] = bytes(blob_bytes)
            identity = f"{position}".encode()
            with opened(image, source, tmp_path, identity=identity) as blob:
                got = bytearray(blob.size_bytes)
                try:
                    blob.read_into(0, got)
                except IntegrityError as error:
                    assert image.blob_id in str(error)
                else:
                    # A byte that the compressor's format does not use, such as gzip's time.
                    assert got == wanted
                # Whatever happened, the cache file holds right bytes or none.
                held = blob.path.read_bytes()
                for chunk in range(blob.table.chunk_count):
                    start, length = blob.table.chunk_extent(chunk)
                    assert held[start : start + length] in (
                        wanted[start : start + length],
                        bytes(length),
                    )
    assert position > 0


def test_a_damaged_piece_is_asked_for_once_more(image: BuiltImage, tmp_path: Path) -> None:
    source = Damaging(image, flip(3), times=1)
    with opened(image, source, tmp_path) as blob:
        assert read(blob, 0, 10) == FILES[b"big"][:10]
        assert source.source.requests == [image.pieces[0]] * 2


def test_one_log_line_says_what_failed(
    image: BuiltImage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Damaging(image, flip(3), times=6)
    caplog.set_level(logging.WARNING, "lamina")
    with opened(image, source, tmp_path) as blob:
        for _ in range(3):
            with pytest.raises(IntegrityError):
                blob.ensure(4096, 1)
        (record,) = caplog.records
        offset, size = image.pieces[1]
        message = record.getMessage()
        assert f"blob {image.blob_id}, chunks 1 to 1" in message
        assert f"{size} bytes at offset {offset} from liar: " in message
        assert record.levelno == logging.ERROR
        assert not blob.cache.is_ready(1)
        blob.ensure(4096, 1)
        assert blob.cache.is_ready(1), "a failure is not remembered"


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"])
def test_a_wrong_length_is_a_fetch_error(
    image: BuiltImage, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    with (
        opened(image, Damaging(image, change, times=9), tmp_path) as blob,
        pytest.raises(FetchError, match="where"),
    ):
        blob.ensure(0, 1)


def test_a_source_that_is_gone(
    image: BuiltImage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Gone(RangeSource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            raise FetchError("connection refused")

    with opened(image, Gone(), tmp_path) as blob, pytest.raises(FetchError, match="refused"):
        blob.ensure(0, 1)
    (record,) = caplog.records
    assert "from a source: connection refused" in record.getMessage()


def test_good_pieces_of_a_bad_span_are_kept(image: BuiltImage, tmp_path: Path) -> None:
    first, second = image.pieces[0], image.pieces[1]
    source = Damaging(image, flip(second[0] - first[0]), times=99)
    with opened(image, source, tmp_path) as blob:
        with pytest.raises(IntegrityError):
            blob.ensure(0, 3 * 4096)
        assert [blob.cache.is_ready(chunk) for chunk in range(3)] == [True, False, True]


def run_together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_many_readers_fetch_each_piece_once(image: BuiltImage, tmp_path: Path) -> None:
    wanted = plaintext(image, Bootstrap(image.bootstrap))
    source = MemorySource(image)
    barrier = threading.Barrier(8, timeout=60)
    wrong: list[object] = []

    class Slow(RangeSource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            time.sleep(0.002)
            return source.read_range(blob_id, offset, size_bytes)

    with opened(image, Slow(), tmp_path) as blob:

        def work(number: int) -> None:
            barrier.wait()
            for step in range(12):
                offset = (number * 3 + step * 5) % 12 * 4096
                try:
                    if read(blob, offset, 6000) != wanted[offset : offset + 6000]:
                        wrong.append(offset)
                except Error as error:
                    wrong.append(error)

        run_together(8, work)
        assert wrong == []
        assert blob.statistics.decoded_pieces <= len(image.pieces)
        assert blob.statistics.fetched_bytes <= sum(size for _, size in image.pieces)


def test_a_failure_reaches_everyone_who_waits_with_one_log_line(
    image: BuiltImage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()
    release = threading.Event()
    waiting = threading.Semaphore(0)
    calls: list[int] = []
    wait = Flight.wait

    def told(flight: Flight[int], timeout_s: float | None = None) -> Exception | None:
        waiting.release()
        return wait(flight, timeout_s)

    monkeypatch.setattr(Flight, "wait", told)

    class Failing(RangeSource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            calls.append(offset)
            asked.set()
            release.wait(60)
            raise FetchError("registry is gone")

    errors: list[Error] = []
    with opened(image, Failing(), tmp_path) as blob:

        def work(_: int) -> None:
            try:
                blob.ensure(0, 1)
            except Error as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(0,)) for _ in range(5)]
        threads[0].start()
        assert asked.wait(60)
        for thread in threads[1:]:
            thread.start()
            assert waiting.acquire(timeout=60)
        release.set()
        for thread in threads:
            thread.join(60)
        assert len(errors) == 5
        assert {str(error) for error in errors} == {"registry is gone"}
        assert len(caplog.records) == len(calls) == 1


def test_others_try_themselves_when_a_fetch_is_given_up(image: BuiltImage, tmp_path: Path) -> None:
    asked = threading.Event()
    release = threading.Event()
    source = MemorySource(image)

    class Interrupted(RangeSource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            if not asked.is_set():
                asked.set()
                release.wait(60)
                raise KeyboardInterrupt
            return source.read_range(blob_id, offset, size_bytes)

    with opened(image, Interrupted(), tmp_path) as blob:
        interrupted: list[BaseException] = []

        def first() -> None:
            try:
                blob.ensure(0, 1)
            except KeyboardInterrupt as error:
                interrupted.append(error)

        one = threading.Thread(target=first)
        one.start()
        assert asked.wait(60)
        other = threading.Thread(target=lambda: blob.ensure(0, 1))
        other.start()
        time.sleep(0.05)
        release.set()
        one.join(60)
        other.join(60)
        assert len(interrupted) == 1
        assert blob.cache.is_ready(0)


def test_a_full_disk_is_a_store_error(
    image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(image, MemorySource(image), tmp_path) as blob:
        with monkeypatch.context() as full:
            full.setattr(cache_blob, "write_all", refuse)
            with pytest.raises(StoreError, match="No space left"):
                blob.ensure(0, 1)
        assert not blob.cache.is_ready(0)
        blob.ensure(0, 1)


def test_a_pack_is_written_at_once(
    image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(cache_blob, "write_all", lambda _fd, data, _at: written.append(len(data)))
    with opened(image, MemorySource(image), tmp_path) as blob:
        end = blob.table.chunk_extent(blob.table.chunk_count - 1)[0]
        blob.ensure(end, 1)
        assert len(written) == 1
        assert written[0] > 4096


def test_a_table_that_moves_chunks_is_noticed(tmp_path: Path) -> None:
    """Two chunks of one size change places in the chunk table: every digest would still fit."""
    image = build_image({b"file": some_bytes(8192, 1)}, compressor=Compressor.NONE)
    with Bootstrap(image.bootstrap) as bootstrap:
        table = ChunkTable.from_meta(image.meta, bootstrap.blobs[0])
        meta = bytearray(image.meta)
        first, second = (bytes(meta[at : at + 16]) for at in (0, 16))
        # RAFS v6 §2.4: word 0 is the place in the address space, word 1 the place in the blob.
        meta[8:16], meta[24:32] = second[8:16], first[8:16]
        assert table.chunk_count == 2
    forged = BuiltImage(image.bootstrap, image.blob_id, image.blob, bytes(meta), image.contents)
    with opened(forged, MemorySource(image), tmp_path) as blob:
        with pytest.raises(IntegrityError):
            blob.ensure(0, 8192)
        assert blob.cache.ready_count == 0


def test_an_offset_before_the_blob(image: BuiltImage, tmp_path: Path) -> None:
    with opened(image, MemorySource(image), tmp_path) as blob:
        blob.ensure(-4096, 10)
        assert blob.cache.ready_count == 0


def test_closing_twice(image: BuiltImage, tmp_path: Path) -> None:
    with opened(image, MemorySource(image), tmp_path) as blob:
        blob.ensure(0, 1)
        blob.close()
    assert blob.fd == -1


def test_format_errors_of_the_table_are_errors(image: BuiltImage, tmp_path: Path) -> None:
    meta = bytearray(image.meta)
    meta[8:16] = b"\xff" * 8
    forged = BuiltImage(image.bootstrap, image.blob_id, image.blob, bytes(meta), image.contents)
    with opened(forged, MemorySource(image), tmp_path) as blob, pytest.raises(FormatError):
        blob.ensure(0, 4096)
