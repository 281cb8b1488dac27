from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lamina.errors import StoreError
from lamina.store.chunk_places import FIRST_SLOTS, HEADER_SIZE, ChunkPlaces


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def test_what_was_added_is_found(tmp_path: Path) -> None:
    index = ChunkPlaces(tmp_path)
    for number in range(5000):
        index.add(digest(number), number + 1, number << 12)
    found = [list(index.find(digest(number))) for number in range(5000)]
    assert found == [[(number + 1, number << 12)] for number in range(5000)]
    assert list(index.find(digest(9999))) == []
    index.close()
    again = ChunkPlaces(tmp_path)
    assert list(again.find(digest(7))) == [(8, 7 << 12)]
    again.close()


def test_the_latest_place_counts(tmp_path: Path) -> None:
    index = ChunkPlaces(tmp_path)
    index.add(digest(1), 1, 4096)
    index.add(digest(1), 2, 1 << 43)
    assert list(index.find(digest(1))) == [(2, 1 << 43)]
    index.close()


def test_openings_share_it(tmp_path: Path) -> None:
    one, other = ChunkPlaces(tmp_path), ChunkPlaces(tmp_path)
    one.add(digest(1), 1, 4096)
    assert list(other.find(digest(1))) == [(1, 4096)]
    one.close()
    other.close()


def slots(folder: Path) -> int:
    """How many chunks a table has a place for."""
    return ((folder / "chunks").stat().st_size - HEADER_SIZE) // 16


def test_a_full_table_loses_some_and_grows_at_the_next_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamina.store.chunk_places.FIRST_SLOTS", 64)
    index = ChunkPlaces(tmp_path)
    sizes = [slots(tmp_path)]
    for _ in range(5):
        for number in range(200):
            index.add(digest(number), number + 1, 0)
        index.close()
        index = ChunkPlaces(tmp_path)
        sizes.append(slots(tmp_path))
    assert sizes == [64, 128, 256, 512, 512, 512] or sizes == [64, 128, 256, 512, 1024, 1024]
    for number in range(200):
        index.add(digest(number), number + 1, 0)
    hits = [list(index.find(digest(number))) for number in range(200)]
    assert sum(hit == [(number + 1, 0)] for number, hit in enumerate(hits)) >= 190
    index.close()


def test_nothing_is_lost_by_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.store.chunk_places.FIRST_SLOTS", 64)
    index = ChunkPlaces(tmp_path)
    for number in range(100):
        index.add(digest(number), number + 1, 0)
    kept = [number for number in range(100) if list(index.find(digest(number)))]
    index.close()
    grown = ChunkPlaces(tmp_path)
    assert slots(tmp_path) == 128
    assert [number for number in range(100) if list(grown.find(digest(number)))] == kept
    grown.close()


@pytest.mark.parametrize("damage", [b"", b"x" * 100, b"LAMINDEX" + bytes(56 + 16 * 3)])
def test_a_damaged_table_is_replaced(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "chunks").write_bytes(damage)
    index = ChunkPlaces(tmp_path)
    assert slots(tmp_path) == FIRST_SLOTS
    assert (tmp_path / "chunks").stat().st_size == HEADER_SIZE + FIRST_SLOTS * 16
    index.close()
    index.close()


def test_the_table_is_written_in_full(tmp_path: Path) -> None:
    ChunkPlaces(tmp_path).close()
    assert (tmp_path / "chunks").stat().st_blocks * 512 >= FIRST_SLOTS * 16


def test_a_place_that_cannot_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError, match="chunk index"):
        ChunkPlaces(tmp_path)
    assert list(tmp_path.iterdir()) == []
