from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lamina.errors import FetchError, NotFoundError
from lamina.source.blob_source import Cost
from lamina.source.folder_source import FolderSource

BLOB = bytes(range(200))
HEX = hashlib.sha256(BLOB).hexdigest()


def read(source: FolderSource, blob_id: str, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    source.read_into(blob_id, offset, memoryview(buffer), 1.0)
    return bytes(buffer)


@pytest.mark.parametrize("shape", ["blobs/sha256", "sha256", "."])
def test_folders_as_others_write_them(tmp_path: Path, shape: str) -> None:
    (tmp_path / shape).mkdir(parents=True, exist_ok=True)
    source = FolderSource(tmp_path)
    with pytest.raises(NotFoundError, match=HEX):
        read(source, HEX, 0, 1)
    (tmp_path / shape / HEX).write_bytes(BLOB)
    assert read(source, HEX, 10, 20) == BLOB[10:30]
    assert source.cost == Cost.NODE
    with source.open(f"sha256:{HEX}") as file:
        assert file.read() == BLOB


def test_what_is_no_blob(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(b"not for readers")
    (inner / HEX).write_bytes(BLOB)
    source = FolderSource(inner)
    for name in ("../secret", "../../secret", "", "x", HEX.upper(), HEX + "/..", f"{HEX}\0"):
        with pytest.raises(NotFoundError):
            read(source, name, 0, 1)
    with pytest.raises(FetchError, match="sent 100 bytes"):
        read(source, HEX, 100, 101)
    with pytest.raises(FetchError, match="sent 0 bytes"):
        read(source, HEX, 1 << 40, 5)
    with pytest.raises(NotFoundError, match="no folder of blobs"):
        FolderSource(tmp_path / "nothing")


def test_what_is_no_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / HEX)
    with pytest.raises(FetchError, match="cannot be read"):
        read(FolderSource(tmp_path), HEX, 0, 1)
    os.unlink(tmp_path / HEX)
    (tmp_path / HEX).mkdir()
    with pytest.raises(FetchError, match="cannot be read"):
        read(FolderSource(tmp_path), HEX, 0, 1)


def test_what_is_no_manifest_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    source = FolderSource(tmp_path)
    with pytest.raises(NotFoundError, match=HEX):
        read(source, HEX, 0, 1)
    # With somebody who could write, a pipe has nothing yet.
    writer = os.open(tmp_path / "manifest.json", os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(NotFoundError, match=HEX):
            read(source, HEX, 0, 1)
    finally:
        os.close(writer)
