from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from tests.support.native_images import (
    BuiltImage,
    MemorySource,
    build_image,
    push_image,
    some_bytes,
)
from tests.support.opened_blobs import OpenedBlobs
from tests.support.opening import open_image
from tests.support.range_source import RangeSource
from tests.unit.content.test_node_store import opened

from lamina.cli import main
from lamina.content import completeness, residency
from lamina.content.blob_set import BlobSet
from lamina.content.completeness import EvictedError
from lamina.content.lazy_image import LazyImage
from lamina.content.start_plan import START_REQUESTS_AT_ONCE, WORTH_S, choose, plan_start
from lamina.erofs.layout import ChunkIndex
from lamina.erofs.reader import Bootstrap
from lamina.errors import (
    Error,
    FetchError,
    FormatError,
    NotFoundError,
    StoreError,
    UsageError,
)
from lamina.image.base import Stat
from lamina.oci.reference import parse_reference
from lamina.opening.garbage_collection import collect_garbage
from lamina.opening.network_record import known_estimate, measured, remember_estimate
from lamina.opening.request import OpenRequest
from lamina.serve.container_options import ContainerOptions
from lamina.serve.run import RunRequest
from lamina.serve.run_image import OwnImage
from lamina.serve.service.spec import MountSpec, open_spec
from lamina.source import reader_priority
from lamina.source.fetcher import Fetcher
from lamina.source.network_estimate import UNKNOWN, NetworkEstimate, NetworkEstimator
from lamina.source.reader_priority import TokenBucket
from lamina.source.request_sizing import SMALLEST_SPAN
from lamina.store.node import NodeStore
from lamina.store.readiness import use_time

if TYPE_CHECKING:
    from lamina.serve.container_folders import ContainerFolders
    from lamina.serve.runtime import Runtime

CHUNK = 64 << 10
FILES = {b"lib/%02d" % n: random.Random(n).randbytes(60_000 + n) for n in range(20)}
FILES |= {b"etc/%02d" % n: some_bytes(500, n) for n in range(50)} | {b"empty": b""}


@pytest.fixture(scope="module")
def built() -> BuiltImage:
    return build_image(FILES, chunk_size=CHUNK, pack_size=CHUNK)


@contextmanager
def pushed(folder: Path, built: BuiltImage, store: NodeStore) -> Iterator[LazyImage]:
    if not (folder / "layout").exists():
        push_image(built, folder / "layout")
    with open_image(f"oci:{folder / 'layout'}:latest", store=store) as image:
        yield image


def test_where_files_are(built: BuiltImage, tmp_path: Path) -> None:
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        stats = list(residency.files_below(image, ["/lib", b"etc/03", "empty"]))
        assert [stat.path for stat in stats[:2]] == [b"/lib/00", b"/lib/01"]
        assert len(stats) == 22
        extents = residency.extents_of(image, stats)
        assert sum(extent.size_bytes for extent in extents) == sum(stat.size for stat in stats)
        residency.fetch(image, extents)
        cost = image.statistics.requests
        for stat in stats:
            assert image.open(stat).read() == FILES[stat.path[1:]]
        assert image.statistics.requests == cost
        with pytest.raises(NotFoundError):
            list(residency.files_below(image, ["/absent"]))


def test_what_is_wanted_early_is_listed_once(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the table names, and however often."""
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        first, folder = image.stat("etc/07"), image.stat("lib")
        walked = [stat for _, stat in image.walk() if stat.is_file]
        below = [stat for stat in walked if stat.path.startswith(b"/lib/")]
        rest = [stat for stat in walked if stat not in below and stat != first]
        scanned: list[int] = []
        scandir = LazyImage.scandir

        def counted(image: LazyImage, where: Stat) -> Iterator[tuple[bytes, Stat]]:
            scanned.append(where.ino)
            return scandir(image, where)

        monkeypatch.setattr(LazyImage, "scandir", counted)
        image.bootstrap.prefetch_nids = (first.ino, folder.ino, image.root.ino) * 300
        found = [stat.ino for stat in residency.prefetch_list(image)]
        assert found == [stat.ino for stat in (first, *below, *rest)]
        assert len(scanned) == len(set(scanned)) == 3


def test_coverage_of_blobs_and_files(built: BuiltImage, tmp_path: Path) -> None:
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        (blob,) = residency.blob_coverage(image)
        assert (blob.ready_bytes, blob.ready_chunks) == (0, 0)
        assert blob.size_bytes == sum(map(len, FILES.values()))
        image.open("lib/03").read()
        found = {file.path: file for file in residency.file_coverage(image)}
        assert len(found) == len(FILES)
        assert found[b"/lib/03"].ready_bytes == found[b"/lib/03"].size_bytes == 60_003
        assert found[b"/lib/04"].ready_bytes == 0
        residency.fetch(image, residency.all_extents(image))
        (blob,) = residency.blob_coverage(image)
        assert blob.ready_bytes == blob.size_bytes
        assert blob.ready_chunks == blob.chunks


@pytest.mark.parametrize("number", [1, 5000, (1 << 24) - 1])
def test_coverage_of_a_chunk_that_its_blob_has_not(number: int, tmp_path: Path) -> None:
    content = some_bytes(CHUNK, 1)
    hostile = build_image({b"file": content}, chunk_size=CHUNK)
    data = bytearray(hostile.bootstrap)
    with Bootstrap(hostile.bootstrap) as bootstrap:
        nid = bootstrap.lookup(bootstrap.inode(bootstrap.root_nid), b"file")
        assert nid is not None
        inode = bootstrap.inode(nid)
        place = inode.offset + inode.inode_size + inode.xattr_size + 7 & -8
        assert data[place : place + 8] == bytes(bootstrap.chunk_array(inode))
    data[place : place + 8] = ChunkIndex(0, number, 0).pack()
    hostile.bootstrap = bytes(data)
    with opened(tmp_path / "image", hostile, NodeStore(tmp_path / "store")) as image:
        assert image.blobs[0].cache.chunk_count == 1
        with pytest.raises(FormatError, match="/file: a chunk lies outside its blob"):
            list(residency.file_coverage(image))


def test_progress_adds_up(built: BuiltImage, tmp_path: Path) -> None:
    moved: list[int] = []
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        residency.fetch(image, residency.all_extents(image), moved.append)
        assert sum(moved) == image.blobs[0].size_bytes
        moved.clear()
        stopped = threading.Event()
        extents = residency.all_extents(image)
        assert residency.fetch_gently(image, extents, stopped, progress=moved.append)
        assert sum(moved) == image.blobs[0].size_bytes


def test_the_image_is_completed_in_the_background(built: BuiltImage, tmp_path: Path) -> None:
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        fill = residency.BackgroundFill(image)
        image.close_with(fill)
        assert fill.finished.wait(60)
        assert image.blobs[0].complete


def test_the_background_waits_for_readers_and_can_be_stopped(
    built: BuiltImage, tmp_path: Path
) -> None:
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        assert isinstance(image.blobs, BlobSet)
        with image.blobs.fetcher.priority.foreground():
            fill = residency.BackgroundFill(image)
            time.sleep(0.1)
            assert image.statistics.requests == 0
            fill.close()
        assert not fill.finished.is_set()


def test_the_background_tries_again(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "RETRY_S", 0.01)
    inner = MemorySource(built)
    failures = [FetchError("down")] * 3

    class Shaky(RangeSource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            if failures and offset < sum(built.pieces[-1]):
                raise failures.pop()
            return inner.read_range(blob_id, offset, size_bytes)

    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store"), Shaky()) as image:
        fill = residency.BackgroundFill(image)
        assert fill.finished.wait(60)
        fill.close()


@pytest.fixture
def unknown_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is fetched at a time depends on the link, which is another on each machine."""
    monkeypatch.setattr(NetworkEstimator, "estimate", UNKNOWN)


class FrozenBucket(TokenBucket):
    """One for which no time passes; notes what is taken, and tells when it has no more."""

    def __init__(self, bytes_per_s: float) -> None:
        super().__init__(bytes_per_s, clock=lambda: 0.0)
        self.taken = 0
        self.empty = threading.Event()

    def take(self, size_bytes: int) -> float:
        pause_s = super().take(size_bytes)
        if pause_s > 0:
            self.empty.set()
        else:
            self.taken += size_bytes
        return pause_s


RATE = 200_000


def check_rate(image: LazyImage, bucket: FrozenBucket) -> None:
    """What a second allows, one step more, and the pieces at the ends of each step."""
    assert RATE < bucket.taken <= RATE + SMALLEST_SPAN
    ready = residency.blob_coverage(image)[0].ready_bytes
    assert 0 < ready <= bucket.taken + 4 * CHUNK < image.blobs[0].size_bytes


@pytest.mark.usefixtures("unknown_link")
def test_a_rate_is_kept(built: BuiltImage, tmp_path: Path) -> None:
    bucket = FrozenBucket(RATE)
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        extents = residency.all_extents(image)
        assert not residency.fetch_gently(image, extents, bucket.empty, bucket=bucket)
        check_rate(image, bucket)
        residency.fetch(image, extents)
        taken = bucket.taken
        assert residency.fetch_gently(image, extents, threading.Event(), bucket=bucket)
        assert bucket.taken == taken, "what is there costs nothing"


@pytest.mark.usefixtures("unknown_link")
def test_completing_keeps_its_rate(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets: list[FrozenBucket] = []

    def make(bytes_per_s: float) -> FrozenBucket:
        buckets.append(FrozenBucket(bytes_per_s))
        return buckets[-1]

    monkeypatch.setattr(residency, "TokenBucket", make)
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        fill = residency.BackgroundFill(image, bytes_per_s=RATE)
        assert buckets[0].empty.wait(60)
        fill.close()
        assert not fill.finished.is_set()
        check_rate(image, buckets[0])


def test_the_options_of_completing_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []

    class Fill:
        def __init__(self, _image: object, *, bytes_per_s: float | None = None) -> None:
            limits.append(bytes_per_s)

        def close(self) -> None:
            pass

    monkeypatch.setattr(residency, "BackgroundFill", Fill)
    image = LazyImage(None, OpenedBlobs(), resources=ExitStack())  # type: ignore[arg-type]
    monkeypatch.setattr("lamina.opening.open_image.open_image", lambda *_, **__: image)
    mounted = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("lamina.serve.mount.mount_image", lambda *_, **__: mounted)
    monkeypatch.setattr("lamina.serve.run_image.resolve_user", lambda *_: None)
    monkeypatch.setattr("lamina.serve.run_image.runtime_config", lambda *_: {})
    for complete in (True, False):
        wanted = OpenRequest(reference="name")
        request = RunRequest(
            image=wanted, options=ContainerOptions(), complete=complete, limit_rate=RATE
        )
        folders = cast("ContainerFolders", SimpleNamespace(image="/mnt"))
        OwnImage(request, folders, cast("Runtime", None)).start()
    spec = MountSpec(image=OpenRequest(reference="name"), mountpoint="/mnt")
    open_spec(msgspec.structs.replace(spec, complete=True, limit_rate=2 * RATE))
    assert limits == [RATE, 2 * RATE]


@pytest.mark.usefixtures("unknown_link")
def test_prefetch_keeps_its_rate(
    built: BuiltImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates: list[float] = []
    taken: list[int] = []

    class Noting(TokenBucket):
        def __init__(self, bytes_per_s: float) -> None:
            rates.append(bytes_per_s)

        def another(self) -> TokenBucket:
            return self

        def take(self, size_bytes: int) -> float:
            taken.append(size_bytes)
            return 0.0

    monkeypatch.setattr(reader_priority, "TokenBucket", Noting)
    push_image(built, tmp_path / "layout")
    words = ["prefetch", "--json", "--store", str(tmp_path / "store"), "--limit-rate", "2M"]
    assert main([*words, f"oci:{tmp_path / 'layout'}:latest", "/lib"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 20
    assert rates == [2 << 20]
    assert sum(taken) >= sum(len(data) for path, data in FILES.items() if path.startswith(b"lib"))


def test_a_resident_image_needs_no_registry(built: BuiltImage, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with pushed(tmp_path, built, store) as image:
        assert image.origin is not None
        name = f"oci:{tmp_path / 'layout'}:latest"
        residency.make_resident(image, store, name)
        digest = image.origin.reference.digest if image.origin.reference else None
    for path in (tmp_path / "layout" / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    (tmp_path / "layout" / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    with open_image(name, store=store) as image:
        assert image.origin is not None
        assert image.origin.reference is not None
        assert image.origin.reference.digest == digest
        for path, content in FILES.items():
            assert image.open(path).read() == content
        assert image.statistics.requests == 0
        assert store.space.evict(1 << 40) == 0
    with pytest.raises(Error):
        open_image(name, store=store, refresh=True)
    assert store.records.release_resident(name)
    with pytest.raises(Error):
        open_image(name, store=store)


@pytest.mark.usefixtures("unknown_link")
def test_what_does_not_fit_the_budget_does_not_become_resident(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a link that is known, a thread of its own may still keep what came ahead.
    push_image(built, tmp_path / "layout")
    store = NodeStore(tmp_path / "store", budget=2_000_000)
    with pushed(tmp_path, built, store) as image:
        with pytest.raises(StoreError, match="budget"):
            residency.make_resident(image, store, "name")
        assert store.records.resident("name") is None
        assert image.statistics.requests == 0, "it was known before"
        monkeypatch.setattr(completeness, "PREDICTABLE", frozenset())
        with pytest.raises(StoreError, match="budget"):
            residency.make_resident(image, store, "name")
        assert store.records.resident("name") is None
        # Not by what evicting says that it freed: blocks that are being written count late.
        came = image.blobs[0].cache.ready_count
        store.space.evict(1)
        assert image.blobs[0].cache.ready_count < came


def test_what_cannot_fit_is_not_begun(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        blob = image.blobs[0]
        needed = blob.missing_bytes(elsewhere=True)
        assert needed == sum(-(-len(content) // 4096) * 4096 for content in FILES.values())
        free = os.statvfs(tmp_path)
        less = list(free)
        less[4] = (needed - 1) // free.f_frsize
        monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(less))
        with pytest.raises(StoreError, match="whose disk has"):
            residency.pull(image)
        assert image.statistics.requests == 0
        less[4] += 1
        residency.pull(image)
        assert blob.missing_bytes(elsewhere=True) == 0


def test_what_another_image_has_needs_no_room_on_the_disk(
    built: BuiltImage, tmp_path: Path
) -> None:
    """It may be shared by reference; a copy on a disk that is full fails when it is made."""
    store = NodeStore(tmp_path / "store")
    half = build_image(dict(list(FILES.items())[:10]), chunk_size=CHUNK, pack_size=CHUNK)
    with opened(tmp_path / "half", half, store) as image:
        residency.pull(image)
    with opened(tmp_path / "image", built, store) as image:
        blob = image.blobs[0]
        here = half.contents.values()
        missing = blob.missing_bytes(elsewhere=True) - blob.missing_bytes()
        assert missing == sum(-(-len(content) // 4096) * 4096 for content in here)


def test_other_images_in_use_leave_less_of_the_budget(built: BuiltImage, tmp_path: Path) -> None:
    other = build_image({b"other": some_bytes(1 << 20, 5)}, chunk_size=CHUNK)
    store = NodeStore(tmp_path / "store", budget=3 << 20)
    (tmp_path / "other").mkdir()
    with pushed(tmp_path / "other", other, store) as image:
        residency.pull(image)
        # Both do not fit: what was used in an earlier tick goes first, in the same tick either may.
        used = use_time()
        while use_time() - used < 2:
            time.sleep(0.01)
        with pushed(tmp_path, built, store) as image:
            residency.pull(image)
        store.space.evict(1 << 40)
    with pushed(tmp_path / "other", other, store) as image:
        residency.make_resident(image, store, "other")
    with pushed(tmp_path, built, store) as image:
        with pytest.raises(StoreError, match="unpin an image"):
            residency.pull(image)
        assert image.statistics.requests == 0


def test_pulling_fails_if_some_of_it_is_gone_at_the_end(built: BuiltImage, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store", budget=8 << 20)
    times: list[int] = []

    def evict_once(moved: int) -> None:
        if not times:
            store.space.evict(1)
        times.append(moved)

    with opened(tmp_path / "image", built, store) as image:
        with pytest.raises(EvictedError, match="chunks of the image were evicted"):
            residency.pull(image, evict_once)
        residency.pull(image)
        assert image.blobs[0].complete


def test_the_background_does_not_fetch_what_does_not_stay(
    built: BuiltImage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = NodeStore(tmp_path / "store", budget=2_000_000)
    with opened(tmp_path / "image", built, store) as image:
        fill = residency.BackgroundFill(image)
        fill._thread.join(60)
        assert not fill._thread.is_alive()
        assert not fill.finished.is_set()
    assert "is not completed in the background" in caplog.text


def test_only_what_has_a_reference_becomes_resident(built: BuiltImage, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with opened(tmp_path / "image", built, store) as image, pytest.raises(UsageError):
        residency.make_resident(image, store, "name")


def age(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


def test_collecting_spares_what_is_in_use(built: BuiltImage, tmp_path: Path) -> None:
    other = build_image({b"other": some_bytes(99_000, 5)}, chunk_size=CHUNK)
    store = NodeStore(tmp_path / "store")
    for name, each in (("one", built), ("two", other)):
        (tmp_path / name).mkdir()
        with pushed(tmp_path / name, each, store) as image:
            residency.fetch(image, residency.all_extents(image))
    with pushed(tmp_path / "one", built, store) as image:
        image.open("etc/01").read()
        age(store.root)
        found = collect_garbage(store)
        assert found.blobs == 1
        assert found.blob_bytes > 90_000
        assert found.files >= 4
        for path, content in FILES.items():
            assert image.open(path).read() == content
        assert image.statistics.requests == 0
    with pushed(tmp_path / "one", built, store) as image:
        image.open("etc/01").read()
        assert image.statistics.requests == 0
    assert collect_garbage(store).blobs == 1
    assert list((store.root / "blobs").iterdir()) == []
    with pushed(tmp_path / "two", other, store) as image:
        assert image.open("other").read() == some_bytes(99_000, 5)


def test_collecting_spares_what_is_resident_and_what_is_young(
    built: BuiltImage, tmp_path: Path
) -> None:
    store = NodeStore(tmp_path / "store")
    with pushed(tmp_path, built, store) as image:
        residency.make_resident(image, store, "name")
    files = sorted((store.root / "metadata").rglob("*"))
    age(store.root)
    assert collect_garbage(store) == (0, 0, 0, 0)
    assert sorted((store.root / "metadata").rglob("*")) == files
    store.records.release_resident("name")
    os.utime(files[-1])
    collect_garbage(store)
    assert files[-1].exists()


def test_collecting_takes_what_was_never_finished(built: BuiltImage, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with pushed(tmp_path, built, store) as image:
        residency.make_resident(image, store, "name")
    kept = sorted(path for path in store.root.rglob("*") if path.is_file())
    folders = "metadata", "metadata/sha256", "metadata/sha512", "index", "holds"
    folders += "records/resident", "records/other", "blobs"
    left = [store.root / folder / ".new.1.ab" for folder in folders]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5000))
    assert collect_garbage(store) == (0, 0, 0, 0)
    assert all(path.exists() for path in left)
    age(store.root)
    found = collect_garbage(store)
    assert sorted(path for path in store.root.rglob("*") if path.is_file()) == kept
    assert (found.blobs, found.files) == (0, len(left) - 1)
    assert found.blob_bytes + found.file_bytes >= len(left) * 5000


@pytest.mark.parametrize(
    ("link", "mode"),
    [
        (NetworkEstimate(0.0005, 3e6), "lazy"),
        (NetworkEstimate(0.05, 3e6), "lazy"),
        (NetworkEstimate(0.2, 1e8), "full"),
        (NetworkEstimate(0.0001, 1e9), "lazy"),
        (NetworkEstimate(0.0, 0.0), "lazy"),
    ],
)
def test_plans(link: NetworkEstimate, mode: str) -> None:
    """An image of 125 MB, of which 10 MB in 210 pieces are read at the start."""
    plan = choose(10_000_000, 210, 125_000_000, link)
    assert plan.mode == mode
    assert plan.chosen == (plan.lazy if mode == "lazy" else plan.full)
    assert choose(10_000_000, 210, 125_000_000, link, "full").mode == "full"


@pytest.mark.parametrize(("difference_s", "mode"), [(0.9, "lazy"), (1.1, "full")])
def test_a_difference_that_nobody_notices_is_not_worth_moving_more(
    difference_s: float, mode: str
) -> None:
    """Both take as long but for the round trips; the difference is in units of what is worth it."""
    link = NetworkEstimate(1e-5, 1e12)
    round_trips = 1 + WORTH_S * difference_s / link.round_trip_s
    plan = choose(1, round(round_trips * START_REQUESTS_AT_ONCE), 1, link)
    assert plan.full.seconds < plan.lazy.seconds
    assert plan.mode == mode


def test_a_plan_counts_only_what_is_missing(built: BuiltImage, tmp_path: Path) -> None:
    link = NetworkEstimate(0.01, 1e6)
    with opened(tmp_path / "image", built, NodeStore(tmp_path / "store")) as image:
        before = plan_start(image, link)
        assert before.full.fetched_bytes == image.bootstrap.blobs[0].compressed_size
        assert 0 < before.lazy.fetched_bytes < before.full.fetched_bytes
        assert before.lazy.requests > 0
        residency.fetch(image, residency.all_extents(image))
        after = plan_start(image, link)
        assert after.full == after.lazy == (0, 0, 0)


def test_links_are_remembered(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    reference = parse_reference("registry.example/app:1")
    assert not known_estimate(store, reference).known
    remember_estimate(store, reference, NetworkEstimate(0.05, 3e6))
    assert known_estimate(store, reference) == NetworkEstimate(0.05, 3e6)
    other = parse_reference("registry.example/other")
    assert known_estimate(store, other).known, "one registry, one link"
    remember_estimate(store, reference, NetworkEstimate(0.052, 3.1e6))
    assert known_estimate(store, reference) == NetworkEstimate(0.05, 3e6), "no news"
    remember_estimate(store, reference, NetworkEstimate(0.0, 0.0))
    assert known_estimate(store, reference).known
    estimator = NetworkEstimator()
    with measured(estimator, 1000):
        time.sleep(0.01)
    assert estimator.estimate.known


def test_a_fetcher_measures_the_one_it_is_told_to(built: BuiltImage) -> None:
    first, second = MemorySource(built), MemorySource(built)
    fetcher = Fetcher([first, second], measured=(second,))
    fetcher.read_range(built.blob_id, 0, 10)
    assert not fetcher.estimate.known
