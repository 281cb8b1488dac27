"""Records whose flags contradict their blob: found by the fuzz target chunk_table."""

from __future__ import annotations

from tests.support.rafs import make_image

from lamina.blob.layout import CHUNK_BATCH, CHUNK_COMPRESSED, CHUNK_ZRAN
from lamina.blob.table import ChunkTable


def test_both_ways_to_a_piece_agree_on_a_record_that_is_no_batch_member() -> None:
    files = {b"%02d" % number: b"%d," % number * 20 for number in range(4)}
    image = make_image(files, pack_size=4096, chunk_size=4096)
    assert image.entry is not None
    assert image.meta[7] == CHUNK_BATCH | CHUNK_COMPRESSED
    damaged = bytearray(image.meta)
    damaged[3 * 24 + 7] = CHUNK_ZRAN | CHUNK_COMPRESSED
    table = ChunkTable.from_meta(bytes(damaged), image.entry)
    piece = table.piece(table.piece_of(2))
    assert (piece.first, piece.count) == (0, 3)
    assert table.piece_holding(2)[1:] == piece[1:]
