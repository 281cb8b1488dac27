"""Blobs that go into a layout before their digest is known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamina.errors import IntegrityError, NotFoundError, StoreError, UnsupportedError
from lamina.oci.manifest import describe
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository

DATA = b"content " * 1000


def layout(folder: Path, *, write: bool = True) -> LayoutRepository:
    return LayoutRepository(parse_reference(f"oci:{folder}"), write=write)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".lamina")]


def test_a_committed_blob_is_there(tmp_path: Path) -> None:
    descriptor = describe("text/plain", DATA)
    with layout(tmp_path) as repository, repository.start_blob() as writer:
        writer.write(DATA[:10])
        writer.write(memoryview(DATA)[10:])
        writer.commit(descriptor)
        with repository.open_blob(descriptor) as blob:
            assert blob.read() == DATA
    assert leftovers(tmp_path) == []


def test_a_dropped_blob_leaves_nothing(tmp_path: Path) -> None:
    descriptor = describe("text/plain", DATA)
    with layout(tmp_path) as repository:
        writer = repository.start_blob()
        writer.write(DATA)
        assert len(leftovers(tmp_path)) == 1
        writer.close()
        writer.close()
        assert not repository.has_blob(descriptor.digest, descriptor.size)
    assert leftovers(tmp_path) == []


def test_a_length_that_was_not_promised_is_refused(tmp_path: Path) -> None:
    with layout(tmp_path) as repository, repository.start_blob() as writer:
        writer.write(DATA[1:])
        with pytest.raises(IntegrityError, match="7999 bytes, not the 8000"):
            writer.commit(describe("text/plain", DATA))
    assert leftovers(tmp_path) == []


def test_a_layout_that_is_read_only_takes_none(tmp_path: Path) -> None:
    layout(tmp_path).close()
    with layout(tmp_path, write=False) as repository, pytest.raises(UnsupportedError):
        repository.start_blob()


def test_a_layout_is_made_by_the_first_write(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with layout(folder) as repository:
        with pytest.raises(NotFoundError, match="no OCI layout folder"):
            repository.resolve()
        assert not repository.has_blob(describe("text/plain", DATA).digest, len(DATA))
        assert not (tmp_path / "a").exists()
        with repository.start_blob() as writer:
            writer.write(DATA)
            writer.commit(describe("text/plain", DATA))
    with layout(folder, write=False) as repository:
        assert repository.has_blob(describe("text/plain", DATA).digest, len(DATA))


def test_a_layout_that_could_not_be_made_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file is no folder"):
        layout(tmp_path / "file" / "a")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _mode: not path.endswith("closed"))
    with pytest.raises(StoreError, match="closed is not yours to write to"):
        layout(tmp_path / "closed" / "a" / "b")
    layout(tmp_path / "open").close()
