"""Chunk tables of hostile bytes: the input is a blob table entry, then a table in either form."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from lamina.blob.check import check_table
from lamina.blob.decode import decode_piece
from lamina.blob.layout import CHUNK_ZRAN, MAX_ZRAN_OUTPUT
from lamina.blob.split_table import SplitTable
from lamina.blob.table import ChunkTable
from lamina.codec.compress import Compressor
from lamina.erofs.chunk_digests import ChunkEntries
from lamina.erofs.layout import BLOB_ENTRY, BlobEntry
from lamina.errors import Error, IntegrityError
from tests.support.rafs import Image, make_image, split_table


def target(data: bytes) -> None:
    """Open both forms of the table, then read as an image does."""
    if len(data) < BLOB_ENTRY.size:
        return
    fields = BLOB_ENTRY.unpack_from(data)
    entry = BlobEntry("b", *fields[1:])
    # The reader of the bootstrap lets no others through.
    if max(entry.compressor, entry.ci_compressor) > Compressor.ZSTD or entry.digester > 1:
        return
    if not 1 <= entry.chunk_count <= 1 << 24 or entry.uncompressed_size > 1 << 44:
        return
    buffer = data[BLOB_ENTRY.size :]
    for make in (ChunkTable.from_meta, ChunkTable.from_stored):
        with contextlib.suppress(Error):
            _use(make(buffer, entry), buffer)
    with contextlib.suppress(Error):
        _use(SplitTable.open_head(buffer, entry, partial(_Frames, buffer)), buffer)


def _use(table: ChunkTable, data: bytes) -> None:
    whole = False
    if table.chunk_count < 5000:
        with contextlib.suppress(Error):
            check_table(table)
            whole = True
    for offset in (0, 4096, table.uncompressed_size // 2, table.uncompressed_size - 1):
        try:
            chunks = table.chunks_in(offset, 8192)
        except Error:
            assert not whole or table.zran_contexts or table.entry.features & 0x18
            continue
        assert len(chunks) <= 3
        for chunk in chunks:
            start, size = table.chunk_extent(chunk)
            assert start < offset + 8192
            assert start + size + 4095 >= offset
    for chunk in range(min(table.chunk_count, 40)):
        with contextlib.suppress(Error):
            table.zran_dictionary(table.zran_contexts[table.zran_context_of(chunk)])
        with contextlib.suppress(Error):
            piece = table.piece(table.piece_of(chunk))
            assert piece.first <= chunk < piece.first + piece.count
            is_zran = table.chunk_flags(piece.first) & CHUNK_ZRAN
            assert piece.raw_size <= (MAX_ZRAN_OUTPUT if is_zran else table.entry.chunk_size)
            holding = table.piece_holding(chunk)
            # Of a table that is not in order it may have more chunks, whose digests tell.
            assert holding[1:] == piece[1:] or not whole
            assert holding.first <= piece.first
            assert holding.first + holding.count >= piece.first + piece.count
            nothing = ChunkEntries(b"", 0, 0, [])
            _decode(table, piece.index, data, nothing)


def _decode(table: ChunkTable, number: int, data: bytes, nothing: ChunkEntries) -> None:
    piece = table.piece(number)
    with contextlib.suppress(IntegrityError):
        stored = data[: piece.size]
        assert decode_piece(table, piece, stored, _NoDigests(nothing), "b") == []


class _Frames:
    """Windows that are anything."""

    def __init__(self, data: bytes, start: int, sizes: Sequence[int]) -> None:
        self._data = data
        self._offsets = list(accumulate(sizes, initial=start))

    def has(self, number: int) -> bool:
        return number % 2 == 0

    def frame(self, number: int) -> bytes:
        start, end = self._offsets[number : number + 2]
        return self._data[start:end]

    def forget(self) -> None:
        pass


class _NoDigests:
    def __init__(self, entries: ChunkEntries) -> None:
        self.find = lambda _: None
        self.overlaps = lambda offset, size: entries.overlaps(0, offset, size)


def seeds() -> list[bytes]:
    """Both forms of a table with and without batches, one whose records are compressed."""
    files = {b"%02d" % number: b"%d," % number * (number * 40 + 1) for number in range(12)}
    images = [
        make_image(files, pack_size=pack_size, chunk_size=4096, compressor=compressor)
        for pack_size in (0, 4096)
        for compressor in (Compressor.NONE, Compressor.ZSTD)
    ]
    encoded, entry, header = split_table()
    split = [encoded.stored[: encoded.head_size], encoded.stored + header]
    forms = [data for image in images for data in _forms(image)]
    return forms + [entry.pack() + data for data in split]


def _forms(image: Image) -> list[bytes]:
    entry = image.entry
    assert entry is not None
    stored = image.blob[entry.ci_offset :][: entry.ci_compressed_size + 4096]
    return [entry.pack() + image.meta, entry.pack() + stored]
