"""Leaf tables, and sealed pieces that claim other lengths than they have."""

from __future__ import annotations

import hashlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.blob.builder import BlobColumns, encode_chunk_entries
from lamina.blob.decode import decode_piece
from lamina.blob.framing import BlobOptions
from lamina.blob.leaf_table import LeafTable, encode_leaf_table
from lamina.blob.merkle import leaf_hash, root_of
from lamina.blob.seal import COMPRESSED, BlobKey, PieceSeal, new_blob_id
from lamina.blob.sealed_table import SealedTable
from lamina.build.sealing import finish_sealed
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import Digester, digest
from lamina.erofs.layout import CHUNK_ENTRY, ChunkEntry
from lamina.errors import FormatError, IntegrityError


def table_of(pieces: list[bytes]) -> tuple[bytes, bytes]:
    leaves = [leaf_hash(number, piece) for number, piece in enumerate(pieces)]
    return encode_leaf_table([len(piece) for piece in pieces], b"".join(leaves)), root_of(leaves)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20))
def test_every_piece_has_its_place_and_no_other(pieces: list[bytes]) -> None:
    data, root = table_of(pieces)
    blob = b"".join(pieces)
    table = LeafTable.decode(data, len(pieces), len(blob), root, "b")
    for number, piece in enumerate(pieces):
        offset, size = table.extent(number)
        assert blob[offset : offset + size] == piece
        table.check(number, piece)
        for other in range(len(pieces)):
            if pieces[other] != piece:
                with pytest.raises(IntegrityError):
                    table.check(other, piece)


@given(st.integers(0, 107), st.integers(0, 7))
def test_no_flipped_bit_of_a_leaf_or_length_passes(position: int, bit: int) -> None:
    pieces = [b"a" * 20, b"b" * 30, b"c" * 5]
    data, root = table_of(pieces)
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    with pytest.raises(IntegrityError):
        LeafTable.decode(changed, 3, 55, root, "b")


@pytest.mark.parametrize("length", [0, 35, 37, 107, 109])
def test_a_table_of_another_length_is_refused(length: int) -> None:
    data, root = table_of([b"a" * 20, b"b" * 30, b"c" * 5])
    with pytest.raises(FormatError):
        LeafTable.decode(data.ljust(length, b"\0")[:length], 3, 55, root, "b")


class OneChunk:
    """The digest of the only chunk of a blob."""

    def __init__(self, entry: ChunkEntry) -> None:
        self.entry = entry

    def find(self, chunk: int) -> ChunkEntry | None:
        return self.entry if chunk == 0 else None

    def overlaps(self, offset: int, size: int) -> bool:
        return True


def sealed_chunk(plain: bytes, inside: bytes) -> tuple[SealedTable, bytes, OneChunk]:
    """A blob of one chunk that is said to be ``plain``, but has ``inside`` sealed in it."""
    compressed = compress(Compressor.ZSTD, inside)
    seal = PieceSeal(BlobKey.new(), new_blob_id())
    stored = seal.seal(0, compressed, len(plain), COMPRESSED)
    columns = BlobColumns(array("I", [len(plain)]), array("I", [1]), array("I", [len(compressed)]))
    options = BlobOptions(4096, Compressor.ZSTD, Digester.BLAKE3)
    blob = finish_sealed(columns, hashlib.sha256(stored), len(stored), options)
    assert blob.entry is not None
    data, root = table_of([stored])
    leaves = LeafTable.decode(data, 1, len(stored), root, blob.blob_id)
    table = SealedTable.open_sealed(blob.meta, blob.entry, leaves, seal)
    entries = encode_chunk_entries(columns, digest(Digester.BLAKE3, plain), 0)
    return table, stored, OneChunk(ChunkEntry._make(CHUNK_ENTRY.unpack(entries)))


def test_a_sealed_chunk_opens() -> None:
    plain = b"abc" * 1000
    table, stored, digests = sealed_chunk(plain, plain)
    piece = table.piece(0)
    assert piece == table.piece_holding(0)
    assert (piece.offset, piece.size) == (0, len(stored))
    [(number, data)] = decode_piece(table, piece, stored, digests, "b")
    assert (number, bytes(data)) == (0, plain)


def test_decompression_bomb() -> None:
    """What whoever has the key can do is bounded too: by the length in the chunk table."""
    table, stored, digests = sealed_chunk(bytes(3000), bytes(50 << 20))
    with pytest.raises(IntegrityError):
        decode_piece(table, table.piece(0), stored, digests, "b")


def test_a_sealed_piece_of_another_plaintext_is_refused() -> None:
    table, stored, digests = sealed_chunk(b"abc" * 1000, b"abd" * 1000)
    with pytest.raises(IntegrityError, match="wrong digest"):
        decode_piece(table, table.piece(0), stored, digests, "b")
