"""A chunk table whose windows are apart: whole for whoever decompresses it, and openable by its
head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.rafs import WINDOW_OWNERS, WINDOWS, split_table

from lamina.blob.split_table import SplitTable, StoredTable, encode_split
from lamina.blob.table import ChunkTable
from lamina.erofs.layout import BlobEntry
from lamina.errors import Error, FormatError, IntegrityError


class Stored:
    """The frames of a table that is here."""

    def __init__(self, stored: bytes, start: int, sizes: Sequence[int]) -> None:
        self._stored = stored
        self._offsets = list(accumulate(sizes, initial=start))
        self.asked: list[int] = []

    def has(self, number: int) -> bool:
        return number in self.asked

    def frame(self, number: int) -> bytes:
        self.asked.append(number)
        return self._stored[self._offsets[number] : self._offsets[number + 1]]

    def forget(self) -> None:
        self.asked.clear()


def opened(encoded: StoredTable, entry: BlobEntry) -> tuple[SplitTable, Stored]:
    stored: list[Stored] = []

    def windows(start: int, sizes: Sequence[int]) -> Stored:
        stored.append(Stored(encoded.stored, start, sizes))
        return stored[0]

    table = SplitTable.open_head(encoded.stored[: encoded.head_size], entry, windows)
    return table, stored[0]


def test_both_ways_tell_the_same() -> None:
    encoded, entry, header = split_table()
    whole = ChunkTable.from_stored(encoded.stored + header, entry)
    split, stored = opened(encoded, entry)
    assert stored.asked == []
    assert split.zran_contexts == whole.zran_contexts
    for number, owner in enumerate(WINDOW_OWNERS):
        assert split.chunk_extent(number) == whole.chunk_extent(number)
        assert split.piece_holding(number) == whole.piece_holding(number)
        window = b"" if owner is None else WINDOWS[owner]
        assert split.zran_dictionary(split.zran_contexts[number]) == window
        assert whole.zran_dictionary(whole.zran_contexts[number]) == window
    assert stored.asked == [0, 1, 2, 2]


def test_a_piece_knows_its_window() -> None:
    encoded, entry, _ = split_table()
    split, stored = opened(encoded, entry)
    pieces = [split.piece_holding(number) for number in range(len(WINDOW_OWNERS))]

    def lacking() -> list[bool]:
        return [bool(list(split.preparations([piece]))) for piece in pieces]

    assert lacking() == [True, False, True, True, True]
    for prepare in split.preparations([pieces[3], pieces[1]]):
        prepare()
    assert stored.asked == [2]
    assert lacking() == [True, False, True, False, False]
    split.forget_prepared()
    assert lacking()[3]


def test_it_is_kept_as_its_head() -> None:
    encoded, entry, _ = split_table()
    split, _ = opened(encoded, entry)
    assert split.to_meta() == encoded.stored[: encoded.head_size]


def test_without_windows_it_is_not_split() -> None:
    encoded = encode_split(bytes(48), [], 0)
    assert encoded.head_size == 0


@pytest.mark.parametrize(
    ("field", "by"),
    [
        ("chunk_count", -1),
        ("ci_compressed_size", 1),
        ("ci_uncompressed_size", 8),
        ("ci_compressor", -3),
    ],
)
def test_an_entry_that_says_something_else(field: str, by: int) -> None:
    encoded, entry, _ = split_table()
    with pytest.raises((FormatError, IntegrityError)):
        opened(encoded, entry._replace(**{field: getattr(entry, field) + by}))


def test_a_head_that_is_cut_off() -> None:
    encoded, entry, _ = split_table()
    for size in range(encoded.head_size):
        with pytest.raises(FormatError):
            opened(encoded._replace(head_size=size), entry)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_head_is_an_error_or_another_table(data: st.DataObject) -> None:
    """What it never is: another exception."""
    encoded, entry, _ = split_table()
    damaged = bytearray(encoded.stored)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, encoded.head_size - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(Error):
        table, _ = opened(encoded._replace(stored=bytes(damaged)), entry)
        for context in table.zran_contexts:
            table.zran_dictionary(context)
