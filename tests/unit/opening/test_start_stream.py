"""Pages that come ahead: they save requests, never change a byte, and never keep a reader long."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support.asked_once import asked_once
from tests.support.native_images import BuiltImage, MemorySource, build_image
from tests.support.opened_blobs import OpenedBlobs

from lamina.blob.start_artifact import PREFIX_BYTES, parse_prefix, parse_tables
from lamina.blob.table import ChunkTable
from lamina.build.start_build import build_start
from lamina.build.start_profile import Profile, ProfileLine, profile_of
from lamina.codec.digest import Digester
from lamina.content.lazy_blob import LazyBlob
from lamina.content.lazy_image import LazyImage
from lamina.content.start_pages import StartPages
from lamina.erofs.reader import Bootstrap
from lamina.errors import NotFoundError, UnsupportedError
from lamina.opening import start_stream
from lamina.opening.find_start import FoundStart
from lamina.opening.start_stream import StartStream
from lamina.store.node import NodeStore

CHUNK = 64 << 10
DIGEST = "sha256:" + hashlib.sha256(b"manifest").hexdigest()


def noise(size: int, seed: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


FILES = {
    b"bin/program": noise(900_000, 1),
    b"lib/one": noise(200_001, 2),
    b"lib/two": noise(70_000, 3),
    b"etc/passwd": noise(700, 4),
    b"other": noise(300_000, 5),
}
PROFILE = Profile(
    (
        ProfileLine(b"/bin/program", ((0, 3), (17, 18), (32, 48), (219, 220))),
        ProfileLine(b"/lib/one", ((0, 2), (48, 49))),
        ProfileLine(b"/etc/passwd"),
        ProfileLine(b"/lib/two", ((16, 18),)),
    )
)


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_image(FILES, chunk_size=CHUNK, blob_count=2)


@contextmanager
def opened(
    image: BuiltImage, folder: Path, stream: StartStream | None = None
) -> Iterator[tuple[LazyImage, MemorySource]]:
    source = MemorySource(image)
    with ExitStack() as stack:
        bootstrap = stack.enter_context(Bootstrap(image.bootstrap))
        blobs = []
        for entry, built in zip(bootstrap.blobs, image.blobs, strict=True):
            table = ChunkTable.from_meta(built.meta, entry)
            cache = NodeStore(folder).blob(
                entry.blob_id, entry.uncompressed_size, entry.chunk_count, identity=b""
            )
            early = stream.pages if stream is not None else None
            digests = bootstrap.chunk_digests(entry.index)
            blobs.append(
                stack.enter_context(
                    LazyBlob(table, digests, asked_once(source), cache, early=early)
                )
            )
        if stream is not None:
            stream.bind(blobs)
            stack.callback(stream.close)
        yield LazyImage(bootstrap, OpenedBlobs(blobs)), source


@pytest.fixture(scope="module")
def artifact(image: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with opened(image, tmp_path_factory.mktemp("build")) as (native, _):
        data, report = build_start(native, DIGEST, PROFILE)
    assert (report.files, report.pages) == (4, 27)
    assert report.artifact_bytes == len(data)
    return data


def read_profile(native: LazyImage) -> None:
    """Read what the profile has, page by page, and compare it."""
    for line in PROFILE.lines:
        content = FILES[line.path[1:]]
        stat = native.stat(line.path)
        for first, stop in line.spans or ((0, -(-len(content) // 4096)),):
            start, size = first * 4096, (stop - first) * 4096
            assert native.pread(stat, start, size) == content[start : start + size]


def read_all(native: LazyImage) -> None:
    for path, content in FILES.items():
        stat = native.stat(path)
        for start in range(0, len(content), 50_000):
            assert native.pread(stat, start, 50_000) == content[start : start + 50_000]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, a reader waits for what comes."""
    monkeypatch.setenv("LAMINA_START_WAIT_S", "100")


def stream_of(data: bytes) -> StartStream:
    return StartStream(lambda _: FoundStart(io.BytesIO(data), DIGEST))


def test_what_the_artifact_has_is_not_fetched(
    image: BuiltImage, artifact: bytes, tmp_path: Path
) -> None:
    with opened(image, tmp_path, stream_of(artifact)) as (native, source):
        read_profile(native)
        assert source.requests == []
        read_all(native)
        assert source.requests
    with opened(image, tmp_path) as (native, _):
        # What came whole is in the store, and right.
        read_all(native)


def test_reads_that_begin_in_the_artifact_and_end_outside_are_right(
    image: BuiltImage, artifact: bytes, tmp_path: Path
) -> None:
    with opened(image, tmp_path, stream_of(artifact)) as (native, _):
        blob = native.blobs[0]
        whole = bytearray(blob.size_bytes)
        for start in range(0, blob.size_bytes, 24_000):
            part = memoryview(whole)[start : start + 24_000]
            assert blob.read_into(start, part) == len(part)
        again = bytearray(blob.size_bytes)
        assert blob.read_into(0, again) == len(again)
        assert whole == again


def test_a_kernel_finds_them_in_the_file(
    image: BuiltImage, artifact: bytes, tmp_path: Path
) -> None:
    with opened(image, tmp_path, stream_of(artifact)) as (native, source):
        stat = native.stat(b"/bin/program")
        chunk = next(native.chunks(stat))
        blob = native.blobs[chunk.blob_index]
        blob.make_readable(chunk.blob_offset, 3 * 4096)
        assert source.requests == []
        data = bytearray(3 * 4096)
        assert blob.cache.read_into(chunk.blob_offset, memoryview(data)) == len(data)
        assert data == FILES[b"bin/program"][: 3 * 4096]
        assert not blob.has(chunk.blob_offset, 1)
        blob.make_readable(chunk.blob_offset, 4 * 4096)
        assert source.requests
        assert blob.has(chunk.blob_offset, 1)


def test_a_reader_waits_for_its_frame(image: BuiltImage, artifact: bytes, tmp_path: Path) -> None:
    may_go = threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= PREFIX_BYTES:
                may_go.wait(20)
            return super().read(size)

    stream = StartStream(lambda _: FoundStart(Slow(artifact), DIGEST))
    with opened(image, tmp_path, stream) as (native, source):
        timer = threading.Timer(0.2, may_go.set)
        timer.start()
        read_profile(native)
        timer.join()
        assert source.requests == []


def damaged(data: bytes, kind: str) -> bytes:
    prefix = parse_prefix(data[:PREFIX_BYTES])
    first = PREFIX_BYTES + prefix.stored_bytes
    if kind == "empty":
        return b""
    if kind == "cut":
        return data[: first + (len(data) - first) // 2]
    if kind == "longer":
        return data + b"more"
    place = {"prefix": 3, "image": 60, "tables": PREFIX_BYTES + 9, "frame": first + 999}[kind]
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("kind", ["empty", "cut", "longer", "prefix", "image", "tables", "frame"])
def test_damage_costs_requests_only(
    image: BuiltImage, artifact: bytes, tmp_path: Path, kind: str
) -> None:
    with opened(image, tmp_path, stream_of(damaged(artifact, kind))) as (native, _):
        read_profile(native)
        read_all(native)


def forged(image: BuiltImage, artifact: bytes, how: str) -> bytes:
    """An artifact whose digests are right, but whose pages are not those of the image."""
    from lamina.blob.start_artifact import FrameContent, encode, open_frame

    prefix = parse_prefix(artifact[:PREFIX_BYTES])
    start = PREFIX_BYTES + prefix.stored_bytes
    tables = parse_tables(prefix, artifact[PREFIX_BYTES:start])
    frames = []
    for frame in tables.frames:
        siblings, pages = map(
            bytearray, open_frame(frame, artifact[start : start + frame.stored_bytes])
        )
        start += frame.stored_bytes
        ranges = frame.pages
        if how == "page":
            pages[5000] ^= 1
        elif how == "sibling":
            siblings[40] ^= 1
        elif how == "fewer siblings":
            del siblings[-32:]
        elif how == "more siblings":
            siblings += bytes(32)
        elif how == "another place":
            ranges = (ranges[0]._replace(first=ranges[0].first + 3), *ranges[1:])
        elif how == "behind the end":
            ranges = (*ranges[:-1], ranges[-1]._replace(first=1 << 28))
        frames.append(FrameContent(bytes(siblings), bytes(pages), ranges, frame.files))
    ids = ["77" * 32] * len(tables.blob_ids) if how == "blob" else tables.blob_ids
    return encode(prefix.manifest_digest, ids, tables.paths, frames)


@pytest.mark.parametrize(
    "how",
    [
        "page",
        "sibling",
        "fewer siblings",
        "more siblings",
        "another place",
        "behind the end",
        "blob",
    ],
)
def test_forged_pages_are_never_read(
    image: BuiltImage,
    artifact: bytes,
    tmp_path: Path,
    how: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with opened(image, tmp_path, stream_of(forged(image, artifact, how))) as (native, source):
        read_profile(native)
        read_all(native)
        assert source.requests
        pages = native.blobs[0].early
        assert isinstance(pages, StartPages)
        assert pages.served == 0
    assert "start artifact" in caplog.text


def test_a_stream_that_stalls_holds_nobody_up(
    image: BuiltImage, artifact: bytes, tmp_path: Path
) -> None:
    closed = threading.Event()
    in_time: list[bool] = []

    class Stalled(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 0:
                in_time.append(closed.wait(60))
            return super().read(size)

        def close(self) -> None:
            closed.set()

    stalled = Stalled(artifact)
    stream = StartStream(lambda _: FoundStart(stalled, DIGEST))
    now = [0.0]

    def clock() -> float:
        # Each look at it is a stall: the reader does not have to wait for one.  The stream has
        # looked at the real one already.
        now[0] += 1000
        return time.monotonic() + now[0]

    stream.pages._clock = clock
    with opened(image, tmp_path, stream) as (native, source):
        read_all(native)
        assert source.requests
        stalled.close()
    assert all(in_time), "a reader waited until the source went on"


def test_readers_who_want_other_pages_end_the_stream(
    image: BuiltImage, artifact: bytes, tmp_path: Path
) -> None:
    pages = StartPages()
    prefix = parse_prefix(artifact[:PREFIX_BYTES])
    end = PREFIX_BYTES + prefix.stored_bytes
    pages.announce(parse_tables(prefix, artifact[PREFIX_BYTES:end]))
    view = memoryview(bytearray(4096))
    for page in range(100):
        assert not pages.read_into("77" * 32, page * 4096, view)
    assert pages.is_useless


def test_without_numpy_whole_chunks_are_used(
    image: BuiltImage, artifact: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_stream, "_has_numpy", lambda: False)
    with opened(image, tmp_path, stream_of(artifact)) as (native, source):
        read_profile(native)
        assert source.requests
        read_all(native)


def test_no_artifact_is_no_error_and_loads_nothing(
    image: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the way of every start.
    loaded: list[bool] = []

    def load() -> bool:
        loaded.append(True)
        return True

    monkeypatch.setattr(start_stream, "_has_numpy", load)
    with opened(image, tmp_path, StartStream(lambda _: None)) as (native, _):
        read_all(native)
    assert not loaded


def test_files_that_the_image_has_not_are_left_out(image: BuiltImage, tmp_path: Path) -> None:
    with opened(image, tmp_path) as (native, _):
        pages = [(b"/nothing", 0), (b"/lib", 0), (b"/lib/two", 99), (b"/lib/two", 1)]
        _, report = build_start(native, DIGEST, profile_of(pages))
        assert (report.files, report.pages) == (1, 1)
        with pytest.raises(NotFoundError):
            build_start(native, DIGEST, profile_of(pages[:3]))


def test_an_image_with_other_digests_gets_none(tmp_path: Path) -> None:
    other = build_image({b"a": noise(9000, 1)}, digester=Digester.SHA256)
    with opened(other, tmp_path) as (native, _), pytest.raises(UnsupportedError, match="BLAKE3"):
        build_start(native, DIGEST, profile_of([(b"/a", 0)]))
