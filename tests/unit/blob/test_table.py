"""Chunk tables: the encoder's output, read back in both forms; and tables that lie."""

from __future__ import annotations

import mmap
import struct
import tracemalloc
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.rafs import blob_entry
from tests.unit.content.test_scaling import counting_calls

from lamina.blob.builder import BlobColumns, EncodedTable, encode_chunk_entries, encode_table
from lamina.blob.check import check_table
from lamina.blob.layout import CiHeader
from lamina.blob.table import ChunkTable, Piece, read_ci_header
from lamina.codec.compress import Compressor, compress
from lamina.erofs.layout import CHUNK_ENTRY, BlobEntry, BlobFeature, ChunkEntry, round_up
from lamina.errors import FormatError, UnsupportedError

FEATURES = 0x70000001


@st.composite
def columns(draw: st.DrawFn, *, batches: bool) -> BlobColumns:
    """Pieces of one chunk, or several if ``batches``; compressed or not."""
    counts = draw(st.lists(st.integers(1, 5 if batches else 1), min_size=1, max_size=12))
    sizes = [draw(st.integers(1, 0x8000)) for _ in range(sum(counts))]
    stored = []
    first = 0
    for count in counts:
        raw = sum(sizes[first : first + count])
        first += count
        stored.append(raw if draw(st.booleans()) else draw(st.integers(1, raw)))
    return BlobColumns(array("I", sizes), array("I", counts), array("I", stored))


def entry_of(table: EncodedTable, made: BlobColumns, chunk_size: int = 1 << 20) -> BlobEntry:
    header = table.header
    return blob_entry(
        chunk_size=chunk_size,
        chunk_count=header.entries,
        features=header.features,
        uncompressed_size=made.uncompressed_size,
        ci_compressor=header.compressor,
        ci_offset=header.offset,
        ci_compressed_size=header.compressed_size,
        ci_uncompressed_size=header.uncompressed_size,
    )


def meta_of(table: EncodedTable) -> bytes:
    payload = table.payload
    return payload.ljust(round_up(len(payload), 4096), b"\0") + table.header.pack()


def table_of(made: BlobColumns) -> ChunkTable:
    table = encode_table(made, FEATURES, made.data_size + 512)
    return ChunkTable.from_meta(meta_of(table), entry_of(table, made))


@given(st.booleans().flatmap(lambda batches: columns(batches=batches)))
def test_round_trip(made: BlobColumns) -> None:
    encoded = encode_table(made, FEATURES, made.data_size + 512)
    entry = entry_of(encoded, made)
    table = ChunkTable.from_stored(encoded.stored + encoded.header.pack(), entry)
    assert table.to_meta() == meta_of(encoded)
    check_table(table)
    assert bool(encoded.header.features & BlobFeature.BATCH) == made.has_batches
    offset = address = first = 0
    assert table.piece_count == len(made.piece_counts)
    for number, (count, stored) in enumerate(zip(made.piece_counts, made.piece_sizes, strict=True)):
        sizes = made.chunk_sizes[first : first + count]
        piece = table.piece(number)
        assert piece == Piece(
            number, offset, stored, sum(sizes), stored != sum(sizes), first, count
        )
        inside = 0
        for chunk, size in enumerate(sizes, first):
            assert table.chunk_extent(chunk) == (address, size)
            assert table.piece_of(chunk) == number
            assert table.piece_holding(chunk)[1:] == piece[1:]
            assert table.offset_in_piece(chunk) == inside
            assert table.chunks_in(address, 1) == range(chunk, chunk + 1)
            inside += size
            address += round_up(size, 4096)
        offset += stored
        first += count
    assert table.chunks_in(0, 1 << 60) == range(len(made.chunk_sizes))


@given(columns(batches=True), st.integers(0, 1 << 18), st.integers(0, 1 << 17))
def test_chunks_in_a_range(made: BlobColumns, offset: int, size: int) -> None:
    table = table_of(made)
    extents = [table.chunk_extent(chunk) for chunk in range(table.chunk_count)]
    end = min(offset + size, table.uncompressed_size)
    expected = [
        chunk
        for chunk, (start, length) in enumerate(extents)
        if start < end and round_up(start + length, 4096) > offset and offset < end
    ]
    assert list(table.chunks_in(offset, size)) == expected


@given(columns(batches=True), st.integers(0, 200))
def test_chunk_entries_agree_with_the_table(made: BlobColumns, blob_index: int) -> None:
    digests = bytes(number % 251 for number in range(32 * len(made.chunk_sizes)))
    table = table_of(made)
    entries = encode_chunk_entries(made, digests, blob_index)
    for chunk, fields in enumerate(CHUNK_ENTRY.iter_unpack(entries)):
        entry = ChunkEntry._make(fields)
        assert entry.digest == digests[chunk * 32 : chunk * 32 + 32]
        assert (entry.blob_index, entry.index) == (blob_index, chunk)
        assert (entry.uncompressed_offset, entry.uncompressed_size) == table.chunk_extent(chunk)
        piece = table.piece_holding(chunk)
        place = (entry.compressed_offset, entry.compressed_size, entry.flags)
        if piece.count == 1:
            assert place == (piece.offset, piece.size, int(piece.compressed))
        else:
            assert place == (0, 0, 0)


def test_sizes_at_the_limits() -> None:
    largest = BlobColumns(array("I", [1 << 24, 1]), array("I", [1, 1]), array("I", [1 << 24, 1]))
    encoded = encode_table(largest, FEATURES, largest.data_size + 512)
    table = ChunkTable.from_meta(meta_of(encoded), entry_of(encoded, largest, 1 << 24))
    assert table.piece(0) == Piece(0, 0, 1 << 24, 1 << 24, False, 0, 1)
    packed = BlobColumns(
        array("I", [1 << 24, 1, 1]), array("I", [1, 2]), array("I", [(1 << 24) - 1, 2])
    )
    encoded = encode_table(packed, FEATURES, packed.data_size + 512)
    table = ChunkTable.from_meta(meta_of(encoded), entry_of(encoded, packed, 1 << 24))
    assert table.piece(0) == Piece(0, 0, (1 << 24) - 1, 1 << 24, True, 0, 1)


@pytest.mark.parametrize(
    ("sizes", "counts", "stored", "message"),
    [
        ([1], [2], [1], "do not hold"),
        ([1], [1, 0], [1, 1], "do not hold"),
        ([1, 1], [1, 1], [1], "stored size"),
        ([1], [1], [0], "stored size"),
        ([0], [1], [1], "empty"),
        ([(1 << 24) + 1], [1], [9], "larger than 16 MiB"),
        ([1 << 24, 1, 1], [1, 2], [1 << 24, 2], "at most 16777215"),
    ],
)
def test_impossible_columns(
    sizes: list[int], counts: list[int], stored: list[int], message: str
) -> None:
    made = BlobColumns(array("I", sizes), array("I", counts), array("I", stored))
    with pytest.raises(FormatError, match=message):
        encode_table(made, FEATURES, 0)


def test_digests_must_match_the_chunks() -> None:
    made = BlobColumns(array("I", [1]), array("I", [1]), array("I", [1]))
    with pytest.raises(FormatError, match="one digest"):
        encode_chunk_entries(made, bytes(31), 0)


BATCHED = BlobColumns(
    array("I", [10, 20, 30, 4096, 7, 8]), array("I", [3, 1, 2]), array("I", [50, 4096, 15])
)
PLAIN = BlobColumns(array("I", [5000, 5000]), array("I", [1, 1]), array("I", [4000, 5000]))


def with_words(made: BlobColumns, changes: dict[int, int]) -> ChunkTable:
    """The table of ``made`` with some of its 8-byte words replaced."""
    encoded = encode_table(made, FEATURES, made.data_size + 512)
    meta = bytearray(meta_of(encoded))
    for word, value in changes.items():
        struct.pack_into("<Q", meta, word * 8, value)
    return ChunkTable.from_meta(bytes(meta), entry_of(encoded, made))


def test_damaged_records_are_named() -> None:
    with pytest.raises(FormatError, match="chunk 1 does not fit"):
        with_words(PLAIN, {2: 0x3FFFFFFF << 12}).chunk_extent(1)
    with pytest.raises(FormatError, match="chunk 0 does not fit"):
        with_words(PLAIN, {0: 0xF << 8}).chunk_extent(0)
    with pytest.raises(FormatError, match="chunk 1 lies outside the data"):
        with_words(PLAIN, {3: 9000 | 4999 << 44}).piece(1)
    with pytest.raises(FormatError, match="has two sizes"):
        with_words(BATCHED, {10: 99 << 40}).piece(1)
    with pytest.raises(FormatError, match="lies outside the data"):
        with_words(BATCHED, {10: 0}).piece(1)
    with pytest.raises(FormatError, match="batch 0 is out of order at chunk 2"):
        _ = with_words(BATCHED, {5: 1 << 32}).piece_count
    with pytest.raises(FormatError, match=r"batch 9 is not there|out of order"):
        with_words(BATCHED, {2: 9 << 32, 5: 9 << 32, 8: 9 << 32}).piece(0)
    with pytest.raises(FormatError, match="batch 0 claims"):
        with_words(BATCHED, {18: 0xFFFFFFFF << 32 | 50}).piece(0)
    with pytest.raises(FormatError, match="not where its batch continues"):
        check_table(with_words(BATCHED, {5: 11}))
    with pytest.raises(FormatError, match="piece 0 has"):
        check_table(with_words(BATCHED, {18: 70 << 32 | 50}))
    with pytest.raises(FormatError, match="overlaps the one before"):
        check_table(with_words(PLAIN, {3: 3999 | 4999 << 44}))


def test_a_gap_is_an_error_not_a_hole() -> None:
    table = with_words(PLAIN, {2: 3 << 12 | 100 << 44})
    assert table.chunks_in(0, 8192) == range(1)
    with pytest.raises(FormatError, match="no chunk covers byte 8192"):
        table.chunks_in(8192, 1)
    with pytest.raises(FormatError, match="no chunk covers byte 8192"):
        table.chunks_in(0, 8193)
    with pytest.raises(FormatError, match="chunk 1 begins at 12288, not 8192"):
        check_table(table)
    short = with_words(PLAIN, {2: 2 << 12 | 100 << 44})
    with pytest.raises(FormatError, match="end at 12288, not 16384"):
        check_table(short)
    with pytest.raises(FormatError, match="no chunk covers byte 12288"):
        short.chunks_in(12288, 1)


@pytest.mark.parametrize("number", [-1, 2, 1 << 40])
def test_numbers_that_are_not_there(number: int) -> None:
    table = table_of(PLAIN)
    with pytest.raises(FormatError, match=f"no chunk {number}"):
        table.chunk_extent(number)
    with pytest.raises(FormatError, match=f"no chunk {number}"):
        table.piece_of(number)
    with pytest.raises(FormatError, match=f"no piece {number}"):
        table.piece(number)
    with pytest.raises(FormatError, match="no gzip random-access chunk"):
        table.zran_context_of(0)


def test_headers_must_agree_with_the_bootstrap() -> None:
    encoded = encode_table(BATCHED, FEATURES, BATCHED.data_size + 512)
    entry = entry_of(encoded, BATCHED)
    meta = meta_of(encoded)
    for field, name in [
        ({"ci_offset": 1}, "offset"),
        ({"ci_compressor": Compressor.LZ4_BLOCK}, "compressor"),
        ({"ci_compressed_size": 7}, "compressed size"),
        ({"ci_uncompressed_size": entry.ci_uncompressed_size + 40}, "uncompressed size"),
        ({"chunk_count": 5}, "entries"),
    ]:
        with pytest.raises(FormatError, match=f" {name} is .* in the bootstrap"):
            ChunkTable.from_meta(meta, entry._replace(**field))  # type: ignore[arg-type]
    for fields in ({"context_offset": 0}, {"context_size": 999}, {"context_count": 7}):
        header = encoded.header._replace(**fields)
        with pytest.raises(FormatError, match="contexts"):
            ChunkTable.from_meta(meta[:-4096] + header.pack(), entry)


def test_damaged_headers() -> None:
    assert read_ci_header(CiHeader(*range(9)).pack(), "x") == CiHeader(*range(9))
    with pytest.raises(FormatError, match="magic"):
        read_ci_header(bytes(4096), "x")
    with pytest.raises(FormatError, match="cut off"):
        read_ci_header(bytes(4095), "x")


def test_wrong_lengths() -> None:
    encoded = encode_table(PLAIN, FEATURES, 9512)
    entry = entry_of(encoded, PLAIN)
    meta = meta_of(encoded)
    for data in (b"", meta[:-1], meta + b"\0", meta[4096:]):
        with pytest.raises(FormatError, match="chunk table of blob"):
            ChunkTable.from_meta(data, entry)
        with pytest.raises(FormatError, match="chunk table of blob"):
            ChunkTable.from_stored(data, entry)


def test_claims_do_not_allocate() -> None:
    huge = blob_entry(chunk_count=1 << 24, ci_uncompressed_size=1 << 60, ci_compressed_size=9)
    bomb = compress(Compressor.ZSTD, bytes(64 << 20))
    entry = blob_entry(
        ci_compressor=Compressor.ZSTD, ci_compressed_size=len(bomb), ci_uncompressed_size=16
    )
    header = CiHeader(0x70000001, 3, 1, 5000, len(bomb), 16, 0, 0, 0).pack()
    tracemalloc.start()
    for make in (ChunkTable.from_meta, ChunkTable.from_stored):
        with pytest.raises(FormatError, match="bytes for 16777216 chunks"):
            make(bytes(4105), huge)
    with pytest.raises(FormatError, match="yields more than 16 bytes"):
        ChunkTable.from_stored(bomb + header, entry)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_foreign_encryption_and_tars_are_refused() -> None:
    for features, message in [(0x70000105, "encrypted"), (0x40000040, "plain tar")]:
        with pytest.raises(UnsupportedError, match=message):
            ChunkTable.from_meta(b"", blob_entry(features=features))


def test_opening_a_large_table_is_cheap() -> None:
    count = 100_000
    made = BlobColumns(array("I", [5000]) * count, array("I", [1]) * count, array("I", [9]) * count)
    encoded = encode_table(made, FEATURES, made.data_size + 512)
    meta, entry = meta_of(encoded), entry_of(encoded, made)
    tracemalloc.start()
    with counting_calls(calls := []):
        table = ChunkTable.from_meta(meta, entry)
        assert table.chunks_in(8192 * 77_777, 4096) == range(77_777, 77_778)
        assert table.piece(table.piece_of(77_777)).offset == 77_777 * 9
    assert calls[0] < 200
    assert tracemalloc.get_traced_memory()[1] < 64 << 10
    tracemalloc.stop()


def test_an_mmap_can_be_closed_after_the_table(tmp_path: Path) -> None:
    encoded = encode_table(BATCHED, FEATURES, BATCHED.data_size + 512)
    path = tmp_path / "blob.meta"
    path.write_bytes(meta_of(encoded))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        table = ChunkTable.from_meta(mapped, entry_of(encoded, BATCHED))
        assert table.piece_count == 3
        table.close()
        table.close()
