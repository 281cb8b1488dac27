"""Records of containers, and where they are found."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from lamina.containers.claim import Claim
from lamina.containers.places import find_container, list_ended, list_live
from lamina.containers.record import RECORD_FILE, ContainerRecord, read_record, write_record
from lamina.errors import NotFoundError


def record(name: str, bundle: str = "") -> ContainerRecord:
    return ContainerRecord(
        name=name,
        image="image",
        command=("sh",),
        created_s=1.0,
        labels={},
        detached=True,
        keeps=True,
        stop_signal="SIGTERM",
        stop_timeout_s=10.0,
        program="/runc",
        state_root="/state",
        bundle=bundle,
    )


def kept(store: Path, each: ContainerRecord) -> Path:
    folder = store / "containers" / each.name
    folder.mkdir(parents=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    write_record(fd, each)
    os.close(fd)
    return folder


def test_written_and_read(tmp_path: Path) -> None:
    ended = record("box").ended(7, 2.0)
    folder = kept(tmp_path, ended)
    assert read_record(str(folder)) == ended
    assert os.listdir(folder) == [RECORD_FILE]


def test_words_that_are_no_utf8(tmp_path: Path) -> None:
    """Bytes of a command line, and what the JSON of an image may say."""
    odd = msgspec.structs.replace(record("box"), command=("\udcff",), labels={"\ud800": "\udfff"})
    assert read_record(str(kept(tmp_path, odd))) == odd


def test_an_image_with_many_labels_is_seen(tmp_path: Path) -> None:
    large = msgspec.structs.replace(record("box"), labels={"a": "\u00e9" * (2 << 20)})
    assert read_record(str(kept(tmp_path, large))) == large


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"name": 1}', b"\xff"])
def test_damaged_ones_are_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(data)
    assert read_record(str(tmp_path)) is None


def test_live_lost_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_RUNTIME", str(tmp_path / "run"))
    store = tmp_path / "store"
    claims = []
    for name in ("live", "lost"):
        bundle = tmp_path / "run/containers" / name
        bundle.mkdir(parents=True, mode=0o700)
        folder = kept(store, record(name, str(bundle)))
        claims.append(Claim(str(bundle), str(folder)))
    claims.pop().close()
    kept(store, record("ended").ended(3, 2.0))
    (tmp_path / "run/containers/being-made").mkdir()
    assert [(each.name, each.is_lost) for each in list_live()] == [("live", False), ("lost", True)]
    assert [each.name for each in list_ended(store)] == ["ended"]
    assert find_container("live", store).is_live
    assert find_container("ended", store).record.exit_code == 3
    for name in ("absent", "being-made", "../ended", ""):
        with pytest.raises(NotFoundError):
            find_container(name, store)
    assert msgspec.json.decode((store / "containers/ended" / RECORD_FILE).read_bytes())
