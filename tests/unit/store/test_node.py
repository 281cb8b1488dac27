from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from lamina.errors import FormatError, IntegrityError, StoreError
from lamina.store import readiness
from lamina.store.files import inode_generation
from lamina.store.node import NodeStore, default_root
from lamina.store.records import INDEX, IndexRecord

BLOB = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path / "store")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_STORE", "/somewhere")
    assert default_root() == Path("/somewhere")
    monkeypatch.delenv("LAMINA_STORE")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/var/lib/lamina")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_root() == Path("/cache/lamina")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_root() == Path("/home/ada/.cache/lamina")


def test_everything_is_private(store: NodeStore) -> None:
    old = os.umask(0)
    try:
        NodeStore(store.root)
        store.put_metadata(b"x")
        store.records.write(INDEX, sha256(b"x"), IndexRecord(sha256(b"y")))
        store.blob(BLOB, 4096, 1).close()
    finally:
        os.umask(old)
    for folder, folders, files in os.walk(store.root):
        for name in folders:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o700, name
        for name in files:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o600, name


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o702])
def test_a_store_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(StoreError, match="cannot be trusted"):
        NodeStore(root)


def test_a_store_of_someone_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(StoreError, match="belongs to user"):
        NodeStore(root)


def test_a_place_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot create") as caught:
        NodeStore(tmp_path / "file" / "store")
    assert "LAMINA_STORE" in (caught.value.hint or "")


def test_a_blob_is_one_file_for_all_who_open_it(store: NodeStore) -> None:
    with store.blob(BLOB, 8192, 2) as first, store.blob(BLOB, 8192, 2) as second:
        first.put([(4096, b"data")], range(0))
        first.mark(1)
        buffer = bytearray(4)
        assert second.is_ready(1)
        assert second.read_into(4096, memoryview(buffer)) == 4
        assert buffer == b"data"
        assert first.path == second.path
        assert os.stat(first.path).st_size == 8192
    with store.blob(BLOB, 8192, 2) as again:
        assert again.is_ready(1)
        assert not again.is_ready(0)
        assert again.ready_count == 1


def test_images_that_disagree_do_not_share_a_blob(store: NodeStore) -> None:
    with (
        store.blob(BLOB, 4096, 1, identity=b"good") as good,
        store.blob(BLOB, 4096, 1, identity=b"evil") as evil,
    ):
        evil.put([(0, b"forged")], range(0))
        evil.mark(0)
        assert not good.is_ready(0)
        assert good.path != evil.path


@pytest.mark.parametrize(("size", "count"), [(8192, 1), (4096, 2)])
def test_a_blob_of_another_shape_starts_empty(store: NodeStore, size: int, count: int) -> None:
    with store.blob(BLOB, 4096, 1) as old:
        old.put([(0, b"old")], range(0))
        old.mark(0)
        with store.blob(BLOB, size, count) as new:
            assert not new.is_ready(0)
            assert os.pread(new.fd, 3, 0) == bytes(3)
        assert os.pread(old.fd, 3, 0) == b"old", "who has the old file keeps it"


@pytest.mark.parametrize("damage", ["data gone", "map gone", "map damaged", "data cut", "data new"])
def test_a_pair_that_does_not_fit_starts_empty(store: NodeStore, damage: str) -> None:
    with store.blob(BLOB, 4096, 1) as blob:
        blob.put([(0, b"old")], range(0))
        blob.mark(0)
        data, map_path = blob.path, blob.path.with_suffix(".ready")
    if damage == "data gone":
        data.unlink()
    elif damage == "map gone":
        map_path.unlink()
    elif damage == "map damaged":
        with map_path.open("r+b") as file:
            file.seek(20)
            file.write(b"\xff")
    elif damage == "data cut":
        os.truncate(data, 100)
    else:
        data.rename(data.with_name("kept"))
        data.write_bytes(bytes(4096))
    with store.blob(BLOB, 4096, 1) as blob:
        assert not blob.is_ready(0)
        assert os.pread(blob.fd, 3, 0) == bytes(3)


def reboot(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    boot_id = bytes([number]) * 16
    monkeypatch.setattr("lamina.store.node.current_boot_id", lambda: boot_id)


def test_a_partial_blob_is_not_trusted_after_a_reboot(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.blob(BLOB, 8192, 2) as blob:
        blob.mark(0)
    reboot(monkeypatch, 1)
    with store.blob(BLOB, 8192, 2) as blob:
        assert blob.ready_count == 0
        assert blob.is_unverified(0)
        assert not blob.is_unverified(1)


def test_a_complete_blob_that_was_closed_outlives_a_reboot(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.blob(BLOB, 8192, 2) as blob:
        blob.put([(0, b"a" * 8192)], range(0))
        blob.mark(0, 2)
    for number in (1, 2):
        reboot(monkeypatch, number)
        with store.blob(BLOB, 8192, 2) as blob:
            assert blob.complete
            assert os.pread(blob.fd, 8192, 0) == b"a" * 8192


def test_a_complete_blob_that_was_not_closed_is_lost_with_the_power(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.blob(BLOB, 8192, 2)
    blob.mark(0, 2)
    reboot(monkeypatch, 1)
    with store.blob(BLOB, 8192, 2) as after:
        assert after.ready_count == 0
    blob.close()
    blob.close()


def test_complete_is_noticed_whoever_marks(store: NodeStore) -> None:
    with store.blob(BLOB, 3 * 4096, 3) as one, store.blob(BLOB, 3 * 4096, 3) as other:
        one.mark(0)
        assert not other.complete
        other.mark(2)
        assert not one.complete
        one.mark(1)
        assert one.complete
        assert other.complete


@pytest.mark.parametrize("blob_id", ["", "..", ".x", "a/b", "a\0b", "x" * 65, "../" + "a" * 60])
def test_ids_that_are_no_file_names(store: NodeStore, blob_id: str) -> None:
    with pytest.raises(FormatError, match="not a name"):
        store.blob(blob_id, 4096, 1)


@pytest.mark.parametrize(("size", "count"), [(1 << 60, 1), (-1, 1), (4096, 1 << 25), (4096, -1)])
def test_impossible_sizes(store: NodeStore, size: int, count: int) -> None:
    with pytest.raises(FormatError, match="claims"):
        store.blob(BLOB, size, count)


def test_a_blob_that_no_file_system_can_hold_is_a_store_error(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "truncate", refuse)
    with pytest.raises(StoreError, match="No space left"):
        store.blob(BLOB, 4096, 1)
    assert not list((store.root / "blobs").iterdir())


def test_writing_to_a_closed_blob_is_a_store_error(store: NodeStore) -> None:
    blob = store.blob(BLOB, 4096, 1)
    blob.close()
    with pytest.raises(StoreError):
        blob.put([(0, b"x")], range(0))


def test_metadata_is_kept_by_digest(store: NodeStore) -> None:
    digest = store.put_metadata(b"manifest")
    assert digest == sha256(b"manifest")
    assert store.put_metadata(b"manifest", digest) == digest
    assert store.metadata(digest) == b"manifest"
    path = store.metadata_path(digest)
    assert path is not None
    assert path.read_bytes() == b"manifest"
    mapped = store.map_metadata(digest)
    assert mapped is not None
    assert mapped[:] == b"manifest"
    mapped.close()


def test_sha512_digests(store: NodeStore) -> None:
    digest = f"sha512:{hashlib.sha512(b'x').hexdigest()}"
    assert store.put_metadata(b"x", digest) == digest
    assert store.metadata(digest) == b"x"


def test_absent_metadata(store: NodeStore) -> None:
    digest = sha256(b"absent")
    assert store.metadata(digest) is None
    assert store.metadata_path(digest) is None
    assert store.map_metadata(digest) is None
    assert store.records.read(INDEX, digest) is None


def test_wrong_metadata_is_refused(store: NodeStore) -> None:
    with pytest.raises(IntegrityError, match="promised"):
        store.put_metadata(b"forged", sha256(b"promised"))
    assert store.metadata(sha256(b"promised")) is None
    assert store.metadata(sha256(b"forged")) is None


def test_metadata_that_rotted_is_not_returned(store: NodeStore) -> None:
    digest = store.put_metadata(b"manifest")
    path = store.metadata_path(digest)
    assert path is not None
    path.write_bytes(b"manifesT")
    assert store.metadata(digest) is None
    store.put_metadata(b"manifest", digest)
    assert store.metadata(digest) == b"manifest"


@pytest.mark.parametrize("digest", ["", "sha256:..", "md5:" + "0" * 32, "sha256:" + "A" * 64])
def test_what_is_no_digest(store: NodeStore, digest: str) -> None:
    with pytest.raises(FormatError):
        store.metadata(digest)


def test_a_stream_that_fails_leaves_nothing(store: NodeStore) -> None:
    def pieces() -> object:
        yield b"half"
        raise IntegrityError("broken")

    with pytest.raises(IntegrityError):
        store.put_metadata_stream(pieces())  # type: ignore[arg-type]
    assert not [path for path in (store.root / "metadata").rglob("*") if path.is_file()]
    assert store.put_metadata_stream(iter((b"who", b"le"))) == sha256(b"whole")
    assert store.metadata(sha256(b"whole")) == b"whole"


def test_records(store: NodeStore) -> None:
    digest = sha256(b"manifest")
    for other in (sha256(b"one"), sha256(b"two")):
        store.records.write(INDEX, digest, IndexRecord(other))
        assert store.records.read(INDEX, digest) == IndexRecord(other)
    (path,) = (store.root / "records" / "index").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert store.records.read(INDEX, digest) is None


def _mark_in_another_process(root: str, chunk: int) -> None:
    with NodeStore(Path(root)).blob(BLOB, 64 * 4096, 64) as blob:
        blob.put([(chunk * 4096, bytes([chunk]) * 4096)], range(0))
        blob.mark(chunk)


def test_processes_share_a_blob(store: NodeStore) -> None:
    context = multiprocessing.get_context("spawn")
    with store.blob(BLOB, 64 * 4096, 64) as blob:
        processes = [
            context.Process(target=_mark_in_another_process, args=(str(store.root), chunk))
            for chunk in (3, 40)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            process.close()
        assert [chunk for chunk in range(64) if blob.is_ready(chunk)] == [3, 40]
        assert os.pread(blob.fd, 2, 40 * 4096) == bytes([40, 40])


def test_readiness_is_fail_closed_by_default() -> None:
    assert readiness.decode_header(b"") is None


def test_another_file_with_the_number_of_the_old_one_is_not_believed(store: NodeStore) -> None:
    """As when a backup of the data is put in its place: file systems use numbers again."""
    with store.blob(BLOB, 8192, 2) as blob:
        blob.put([(0, b"x" * 8192)], range(0))
        blob.mark(0, 2)
        number = os.fstat(blob.fd).st_ino
    blob.path.unlink()
    others = []
    while True:
        with blob.path.open("wb") as file:
            file.truncate(8192)
            found = os.fstat(file.fileno())
            known = inode_generation(file.fileno())
        blob.path.chmod(0o600)
        if found.st_ino == number or len(others) > 200:
            break
        others.append(blob.path.rename(blob.path.with_name(f"other-{len(others)}")))
    if found.st_ino != number or not known:
        pytest.skip("this file system does not use inode numbers again, or has no generations")
    with store.blob(BLOB, 8192, 2) as again:
        assert again.ready_count == 0
