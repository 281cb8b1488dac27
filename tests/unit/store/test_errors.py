"""What the operating system refuses is told with what can be done about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.support.native_images import build_image, push_image
from tests.support.opening import open_image

from lamina.cli import main
from lamina.errors import StoreError, os_hint
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.opening.garbage_collection import collect_garbage
from lamina.store import files
from lamina.store.files import StoreAccessError, store_error
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free some space: `lamina gc`, or another place with --store"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mounted read-only: remount it, or choose another place with --store"),
        (errno.EACCES, "not for this user"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "memory"),
        (errno.EIO, "dmesg"),
    ],
)
def test_a_hint_fits_its_errno(code: int, words: str) -> None:
    found = store_error("write it", OSError(code, os.strerror(code)))
    assert str(found) == f"cannot write it: {os.strerror(code)}"
    assert words in str(found.hint)
    is_full = code in (errno.ENOSPC, errno.EDQUOT)
    assert ("free some space" in str(found.hint)) == is_full
    assert found.exit_code == StoreError.exit_code == 10
    assert found.errno == (errno.ENOSPC if is_full else errno.EIO), "what a reader gets"


def test_no_hint_is_better_than_a_wrong_one() -> None:
    assert os_hint(OSError(errno.EXDEV, "no")) is None
    assert os_hint(OSError("no")) is None
    assert store_error("do it", OSError(errno.EXDEV, "no")).hint is None


@pytest.fixture
def filled(tmp_path: Path) -> tuple[NodeStore, str]:
    push_image(build_image({b"file": b"content"}), tmp_path / "layout")
    reference = f"oci:{tmp_path / 'layout'}:latest"
    store = NodeStore(tmp_path / "store")
    with open_image(reference, store=store) as image:
        image.open("file").read()
    return store, reference


def refuse(monkeypatch: pytest.MonkeyPatch, code: int, *, name: str) -> None:
    """Have the system refuse to open files of a name, and to remove or list any."""
    opened = os.open

    def refused(path: str | Path, *arguments: int, **more: int) -> int:
        if Path(path).name == name:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EMFILE, errno.EACCES])
def test_collecting_and_opening_where_nothing_can_be_locked(
    filled: tuple[NodeStore, str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, reference = filled
    refuse(monkeypatch, code, name="lock")
    with pytest.raises(StoreAccessError, match=os.strerror(code)):
        collect_garbage(store)
    with (
        open_image(reference, store=store) as image,
        pytest.raises(StoreAccessError, match=os.strerror(code)),
    ):
        image.open("file").read()
    assert main(["gc", "--store", str(store.root)]) == 10
    told = capsys.readouterr().err
    assert os.strerror(code) in told
    assert "hint: " in told


def test_room_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = NodeStore(tmp_path, budget=1 << 20)
    refuse(monkeypatch, errno.EROFS, name="space.lock")
    with pytest.raises(StoreAccessError, match="Read-only"), store.space.room(1):
        pass


def test_removing_what_cannot_be_removed(
    filled: tuple[NodeStore, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = filled

    def refused(path: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refused)
        with pytest.raises(StoreAccessError, match="Read-only"):
            collect_garbage(store)
    (digest,) = (digest for digest, _ in store.records.each(IMAGE))
    path = store.metadata_path(digest)
    assert path is not None
    path.write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, **_: refused(str(path)))
        with pytest.raises(StoreAccessError, match="damaged"):
            store.metadata(digest)


def test_a_bootstrap_that_cannot_be_opened_is_not_said_to_be_damaged(
    filled: tuple[NodeStore, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = filled
    path = next((store.root / "metadata" / "sha256").iterdir())

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StoreError, match="Too many open files"), mapped_bootstrap(path):
        pass
    with pytest.raises(StoreError, match="Too many open files") as failure:
        store.map_metadata(f"sha256:{path.name}")
    assert "ulimit" in str(failure.value.hint)


def test_locks_are_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with files.locked(tmp_path / "lock"):
            pass
