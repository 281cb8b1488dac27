from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.blob.test_table import table_of

from lamina.blob.builder import BlobColumns
from lamina.blob.neighbours import run_around
from lamina.blob.table import ChunkTable
from lamina.content.blob_set import zones_of


@given(st.integers(0, 200), st.integers(1, 200), st.integers(0, 200), st.data())
def test_runs(before: int, members: int, after: int, data: st.DataObject) -> None:
    run = range(before, before + members)
    number = data.draw(st.sampled_from(run))
    assert run_around(run.__contains__, number, before + members + after) == run


def test_a_run_is_found_in_few_steps() -> None:
    asked: list[int] = []

    def belongs(number: int) -> bool:
        asked.append(number)
        return 100 <= number < 1_000_100

    assert run_around(belongs, 600_000, 2_000_000) == range(100, 1_000_100)
    assert len(asked) <= 4 * 20 + 4


def tiny_files(packs: int) -> ChunkTable:
    """A blob of full packs, with 4000 tiny files in each."""
    members = 4000
    sizes = array("I", [250]) * (members * packs)
    return table_of(BlobColumns(sizes, array("I", [members]) * packs, array("I", [9000]) * packs))


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunks whose records were looked at to find a piece."""
    seen: list[int] = []
    group_of = ChunkTable._group_of

    def counted(table: ChunkTable, chunk: int) -> int | None:
        seen.append(chunk)
        return group_of(table, chunk)

    monkeypatch.setattr(ChunkTable, "_group_of", counted)
    return seen


def test_a_pack_of_tiny_files_is_found_in_few_steps(looked_at: list[int]) -> None:
    table = tiny_files(8)
    for chunk in (0, 1, 3999, 4000, 17_000, 31_999):
        looked_at.clear()
        piece = table.piece_holding(chunk)
        assert (piece.first, piece.count) == (chunk // 4000 * 4000, 4000)
        assert len(looked_at) <= 4 * 12 + 4


def test_laying_out_a_blob_of_tiny_files_takes_few_steps(looked_at: list[int]) -> None:
    table = tiny_files(8)
    zones = zones_of(table)
    assert [first % 4000 for first, _ in zones] == [0] * len(zones)
    assert len(zones) == 8
    probes = table.uncompressed_size >> 20
    assert len(looked_at) <= probes * (4 * 12 + 4)
