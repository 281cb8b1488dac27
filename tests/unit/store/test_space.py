from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.support.disk import disk_usage

from lamina.errors import StoreError, UsageError
from lamina.linux.file_space import punch_hole
from lamina.posix.write import write_all
from lamina.store.cache_blob import CacheBlob
from lamina.store.locks import Lock, is_locked
from lamina.store.node import NodeStore
from lamina.store.records import ResidentRecord
from lamina.store.space import parse_budget

CHUNK = 64 << 10
COUNT = 64
SIZE = COUNT * CHUNK
ZONES = [(number, number * CHUNK) for number in range(0, COUNT, 4)]
ZONE = 4 * CHUNK
BASE = 256 << 10
"""Room for the small files of a store."""


def open_blob(store: NodeStore, name: str = "ab" * 32) -> CacheBlob:
    return store.blob(name, SIZE, COUNT, zones=lambda: ZONES)


def content(chunk: int) -> bytes:
    return bytes([chunk % 255 + 1]) * CHUNK


def fill(blob: CacheBlob, chunks: range) -> None:
    for chunk in chunks:
        blob.put([(chunk * CHUNK, content(chunk))], range(chunk, chunk + 1))


def read(blob: CacheBlob, chunk: int) -> bytes | None:
    buffer = bytearray(CHUNK)
    count = blob.read_ready(chunk * CHUNK, memoryview(buffer), range(chunk, chunk + 1))
    return bytes(buffer) if count == CHUNK else None


def ready(blob: CacheBlob) -> list[int]:
    return [chunk for chunk in range(COUNT) if blob.is_ready(chunk)]


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every use is later than the one before."""
    ticks = iter(range(10_000, 1 << 30, 50))
    for module in ("cache_blob", "space"):
        monkeypatch.setattr(f"lamina.store.{module}.use_time", lambda: next(ticks))


def test_a_budget_holds(tmp_path: Path, ticking: None) -> None:
    budget = BASE + 10 * ZONE
    store = NodeStore(tmp_path / "store", budget=budget)
    with open_blob(store) as blob:
        for chunk in range(COUNT):
            fill(blob, range(chunk, chunk + 1))
            assert disk_usage(store.root) <= budget
            assert read(blob, chunk) == content(chunk)
        assert store.space.used_bytes() == pytest.approx(disk_usage(store.root), abs=8192)
        assert 24 <= len(ready(blob)) <= 44
        assert all(read(blob, chunk) == content(chunk) for chunk in ready(blob))


def test_what_was_not_used_longest_goes_first(tmp_path: Path, ticking: None) -> None:
    store = NodeStore(tmp_path / "store", budget=BASE + 6 * ZONE)
    with open_blob(store) as blob:
        fill(blob, range(16))
        assert read(blob, 0) is not None
        fill(blob, range(16, 28))
        assert blob.is_ready(0), "used after the others were filled"
        assert not blob.is_ready(4)
        assert blob.is_ready(27)


def test_other_blobs_give_way(tmp_path: Path, ticking: None) -> None:
    store = NodeStore(tmp_path / "store", budget=BASE + 6 * ZONE)
    with open_blob(store, "old") as old, open_blob(store, "new") as new:
        fill(old, range(20))
        fill(new, range(20))
        assert len(ready(new)) == 20
        assert len(ready(old)) <= 8


def test_an_evicted_chunk_is_a_hole_and_not_ready(tmp_path: Path, ticking: None) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fill(blob, range(8))
        assert not blob.complete
        assert store.space.evict(1) >= ZONE
        assert ready(blob) == [4, 5, 6, 7]
        assert os.pread(blob.fd, ZONE, 0) == bytes(ZONE)
        assert read(blob, 0) is None
        assert blob.path.stat().st_size == SIZE
        assert store.space.evict(1 << 40) >= ZONE
        assert ready(blob) == []
        assert store.space.evict(1) == 0


def test_complete_is_not_for_ever(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fill(blob, range(COUNT))
        assert blob.complete
        store.space.evict(1)
        assert not blob.complete
        assert blob.read_complete(0, memoryview(bytearray(10))) == -1
        blob.close()
    with open_blob(store) as blob:
        assert not blob.complete


def test_an_eviction_in_the_middle_of_a_read_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fill(blob, range(COUNT))
        original = CacheBlob.read_into

        def slow(self: CacheBlob, offset: int, buffer: memoryview) -> int:
            store.space.evict(1 << 40)
            return original(self, offset, buffer)

        monkeypatch.setattr(CacheBlob, "read_into", slow)
        buffer = memoryview(bytearray(10))
        assert blob.read_ready(0, buffer, range(1)) == -1
        fill(blob, range(COUNT))
        assert blob.read_complete(0, buffer) == -1


def test_what_a_kernel_may_read_stays(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store", budget=BASE + 6 * ZONE)
    with open_blob(store, "held") as held, open_blob(store, "other") as other:
        fill(held, range(20))
        held.hold()
        held.hold()
        held.end_hold()
        assert store.space.evict(1 << 40) == 0
        other.hold()
        with pytest.raises(StoreError, match="budget of") as caught:
            fill(other, range(20))
        assert caught.value.errno == errno.ENOSPC
        assert "--store-budget" in (caught.value.hint or "")
        assert len(ready(held)) == 20
        assert disk_usage(store.root) <= BASE + 6 * ZONE
        held.end_hold()
        fill(other, range(20))
        assert len(ready(other)) == 20


def test_holding_only_what_is_complete(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        assert not blob.hold_if_complete()
        assert store.space.evict(1) == 0
        fill(blob, range(COUNT))
        assert blob.hold_if_complete()
        assert store.space.evict(1) == 0
        blob.end_hold()
        blob.end_hold()
        assert store.space.evict(1) > 0


def test_a_hold_lasts_while_any_process_has_it(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fill(blob, range(COUNT))
        blob.hold()
        kept = os.dup(blob.lock_fd)
    assert store.space.evict(1) == 0
    os.close(kept)
    assert store.space.evict(1) > 0


def test_what_is_resident_stays(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fill(blob, range(COUNT))
        record = ResidentRecord(name="image", blobs=(blob.path.stem,), digest="d")
        store.records.keep_resident(record)
        assert store.space.evict(1) == 0
        assert store.records.resident("image") == record
        assert store.records.release_resident("image")
        assert not store.records.release_resident("image")
        assert store.records.resident("image") is None
        assert store.space.evict(1) > 0


def test_a_full_disk_evicts_before_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store, "old") as old, open_blob(store, "new") as new:
        fill(old, range(COUNT))
        full = [True]

        def limited(fd: int, data: bytes, offset: int) -> None:
            if full[0] and old.complete:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_all(fd, data, offset)

        monkeypatch.setattr("lamina.store.cache_blob.write_all", limited)
        fill(new, range(1))
        assert read(new, 0) == content(0)
        assert not old.complete


def test_a_full_disk_with_nothing_to_evict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lamina.store.cache_blob.write_all", full)
    with open_blob(NodeStore(tmp_path / "store")) as blob:
        with pytest.raises(StoreError, match="No space left"):
            fill(blob, range(1))
        assert not blob.is_ready(0)


def test_blocks_that_nobody_marked_are_found_again(tmp_path: Path) -> None:
    """As a process that was killed between writing and marking leaves them."""
    budget = BASE + 8 * ZONE
    store = NodeStore(tmp_path / "store", budget=budget)
    with open_blob(store) as blob:
        for chunk in range(32):
            write_all(blob.fd, content(chunk), chunk * CHUNK)
        assert store.space.used_bytes() >= 8 * ZONE
        fill(blob, range(32, 60))
        assert disk_usage(store.root) <= budget
        assert all(read(blob, chunk) == content(chunk) for chunk in ready(blob))


WRITER = """
import sys
from pathlib import Path
from tests.unit.store.test_space import BASE, COUNT, ZONE, fill, open_blob
from lamina.store.records import ResidentRecord
from lamina.store.node import NodeStore
store = NodeStore(Path(sys.argv[1]), budget=BASE + 10 * ZONE)
with open_blob(store, sys.argv[2]) as blob:
    print("on", flush=True)
    while True:
        fill(blob, range(COUNT))
"""


def start_writer(root: Path, name: str) -> subprocess.Popen[bytes]:
    folder = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'src'}:{folder}"}
    command = [sys.executable, "-c", WRITER, str(root), name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=folder)
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    return process


def locked_usage(root: Path) -> int:
    """Count while nobody writes."""
    fd = os.open(root / "space.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return disk_usage(root)
    finally:
        os.close(fd)


def kill(writers: list[subprocess.Popen[bytes]]) -> None:
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()


def test_processes_keep_to_one_budget_and_survive_each_others_death(tmp_path: Path) -> None:
    root = tmp_path / "store"
    # Extents take blocks of their own.
    budget = BASE + 10 * ZONE
    limit = budget + CHUNK
    store = NodeStore(root, budget=budget)
    with open_blob(store, "a") as shared:
        for turn in range(3):
            writers = [start_writer(root, name) for name in ("a", "b")]
            try:
                deadline = time.monotonic() + 0.4
                while time.monotonic() < deadline:
                    assert locked_usage(root) <= limit
                    for chunk in range(0, COUNT, 7):
                        assert read(shared, chunk) in (None, content(chunk))
            finally:
                kill(writers)
            assert locked_usage(root) <= limit
            fill(shared, range(turn, COUNT, 2))
            assert locked_usage(root) <= limit


def test_readers_never_see_a_hole(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    stop = threading.Event()
    wrong: list[int] = []
    seen = [0]

    def reader(blob: CacheBlob) -> None:
        while not stop.is_set():
            for chunk in range(COUNT):
                data = read(blob, chunk)
                if data is not None:
                    seen[0] += 1
                    if data != content(chunk):
                        wrong.append(chunk)

    def evictor() -> None:
        while not stop.is_set():
            store.space.evict(ZONE)

    with open_blob(store) as blob, open_blob(store) as other:
        work = [
            threading.Thread(target=reader, args=(blob,)),
            threading.Thread(target=reader, args=(other,)),
            threading.Thread(target=evictor),
        ]
        for thread in work:
            thread.start()
        begin = time.monotonic()
        while time.monotonic() < begin + (1 if seen[0] > 100 else 60):
            fill(other, range(COUNT))
        stop.set()
        for thread in work:
            thread.join(60)
        assert wrong == []
        assert seen[0] > 100


def test_an_open_blob_is_known_to_be(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fd = os.open(blob.path.with_suffix(".ready"), os.O_RDWR)
        try:
            assert is_locked(fd, Lock.OPEN)
            assert not is_locked(fd, Lock.KERNEL)
            blob.close()
            assert not is_locked(fd, Lock.OPEN)
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100), ("2K", 2048), ("100M", 100 << 20), ("20GiB", 20 << 30), ("1tb", 1 << 40)],
)
def test_budgets(tmp_path: Path, text: str, size: int) -> None:
    assert parse_budget(text, tmp_path) == size
    assert NodeStore(tmp_path / "store", budget=text).space.budget_bytes == size


def test_a_budget_of_the_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    whole = status.f_blocks * status.f_frsize
    assert parse_budget("80%", tmp_path / "not" / "there") == whole * 80 // 100


@pytest.mark.parametrize("text", ["", "-1", "ten", "1.5G", "101%", "1X", "9" * 20])
def test_what_is_no_budget(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        parse_budget(text, tmp_path)


def test_the_budget_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_STORE_BUDGET", "3M")
    assert NodeStore(tmp_path).space.budget_bytes == 3 << 20
    assert NodeStore(tmp_path, budget=5).space.budget_bytes == 5
    monkeypatch.setenv("LAMINA_STORE_BUDGET", "")
    assert NodeStore(tmp_path).space.budget_bytes is None


def test_punching_what_cannot_be_punched(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            punch_hole(write_end, 0, 4096)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_all_files_of_a_store_are_counted(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "store")
    with open_blob(store) as blob:
        fill(blob, range(3))
        store.local_chunks().close()
        folders = "", "metadata", "metadata/sha256", "metadata/sha512", "index", "holds", "blobs"
        for folder in (*folders, "records/image", "records/resident"):
            (store.root / folder).mkdir(parents=True, exist_ok=True)
            for name in (".new.1.ab", "cd"):
                before = store.space.used_bytes()
                (store.root / folder / name).write_bytes(bytes(50_000))
                assert store.space.used_bytes() >= before + 50_000, f"{folder}/{name}"
        assert store.space.used_bytes() == disk_usage(store.root)


def test_complete_is_not_remembered_over_an_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that found the last chunk ready is overtaken by an eviction, and by who saw it."""
    store = NodeStore(tmp_path / "store")
    looked, go_on = threading.Event(), threading.Event()
    with open_blob(store) as blob:
        fill(blob, range(COUNT))
        first_missing = type(blob._readiness).first_missing

        def slow(readiness: object, first: int, stop: int) -> int:
            found: int = first_missing(readiness, first, stop)  # type: ignore[arg-type]
            if threading.current_thread().name == "slow":
                looked.set()
                assert go_on.wait(60)
            return found

        monkeypatch.setattr(type(blob._readiness), "first_missing", slow)
        thread = threading.Thread(target=lambda: blob.complete, name="slow")
        thread.start()
        assert looked.wait(60)
        assert store.space.evict(ZONE) > 0
        assert not blob.complete
        go_on.set()
        thread.join()
        assert not blob.complete
        assert not blob.hold_if_complete()
        assert blob.read_complete(0, memoryview(bytearray(SIZE))) == -1


def test_nothing_is_evicted_between_placing_and_marking(tmp_path: Path) -> None:
    """Sharing blocks with another blob takes room as writing does, and before it is done."""
    store = NodeStore(tmp_path / "store", budget=BASE + 4 * ZONE)
    with open_blob(store) as blob, open_blob(store, "cd" * 32) as source:
        fill(source, range(12))
        source.hold()

        def place() -> bool:
            write_all(blob.fd, content(0), 0)
            return True

        for chunk in (20, 24, 28):
            fill(blob, range(chunk, chunk + 4))
        assert blob.take(0, 0, CHUNK, place)
        assert read(blob, 0) == content(0)
        assert blob.take(1, CHUNK, CHUNK, lambda: False) is False
        assert not blob.is_ready(1)
        source.end_hold()
