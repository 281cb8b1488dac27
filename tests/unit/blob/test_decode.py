"""Decoding is where trust begins: every way to hand out other bytes must end in an error."""

from __future__ import annotations

import random
import struct

import pytest
from tests.support.blob_check import check_blob, check_data
from tests.support.rafs import Image, make_image

from lamina.blob.decode import decode_piece
from lamina.blob.layout import tar_header
from lamina.blob.table import ChunkTable
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.chunk_digests import ChunkEntries
from lamina.erofs.layout import BlobEntry, ChunkEntry
from lamina.erofs.reader import Bootstrap
from lamina.errors import FormatError, IntegrityError

FILES: dict[bytes, object] = {
    b"zeros": bytes(20_000),
    b"noise": random.Random(1).randbytes(9000),
} | {b"s%02d" % number: b"%d, " % number * (number * 11 + 1) for number in range(30)}
VARIANTS = [
    (compressor, digester, pack_size)
    for compressor in Compressor
    for digester in Digester
    for pack_size in (0, 2000)
]


def built(compressor: Compressor, digester: Digester, pack_size: int, **more: bool) -> Image:
    return make_image(
        FILES,  # type: ignore[arg-type]
        chunk_size=8192,
        pack_size=pack_size,
        compressor=compressor,
        digester=digester,
        **more,
    )


def entry_of(image: Image) -> BlobEntry:
    assert image.entry is not None
    return image.entry


@pytest.mark.parametrize(("compressor", "digester", "pack_size"), VARIANTS)
@pytest.mark.parametrize("inlined", [False, True])
def test_every_chunk_comes_back(
    compressor: Compressor, digester: Digester, pack_size: int, inlined: bool
) -> None:
    image = built(compressor, digester, pack_size, inlined_digests=inlined)
    entry = entry_of(image)
    digests = Bootstrap(image.bootstrap).chunk_digests(0)
    found = {}
    table = ChunkTable.from_meta(image.meta, entry)
    for piece in table.pieces():
        stored = image.read_at(piece.offset, piece.size)
        found |= dict(decode_piece(table, piece, stored, digests, entry.blob_id))
    assert [bytes(found[number]) for number in range(len(image.chunks))] == image.chunks
    size = sum(map(len, image.chunks))
    assert check_blob(entry, digests, image.read_at, len(image.blob), image.meta) == size


@pytest.mark.parametrize("pack_size", [0, 2000])
def test_a_flipped_byte_anywhere_is_noticed(pack_size: int) -> None:
    image = built(Compressor.ZSTD, Digester.BLAKE3, pack_size)
    entry = entry_of(image)
    digests = Bootstrap(image.bootstrap).chunk_digests(0)
    table = ChunkTable.from_meta(image.meta, entry)
    generator = random.Random(3)
    for piece in table.pieces():
        stored = bytearray(image.read_at(piece.offset, piece.size))
        for _ in range(5):
            position = generator.randrange(len(stored))
            stored[position] ^= 1 << generator.randrange(8)
            where = f"blob {entry.blob_id}, chunk .* at offset {piece.offset}"
            try:
                chunks = decode_piece(table, piece, stored, digests, entry.blob_id)
            except IntegrityError as error:
                assert str(error).startswith(f"blob {entry.blob_id}, chunk "), where
                assert error.hint
            else:
                # A bit that zstd does not look at: the bytes are the right ones.
                assert [bytes(data) for _, data in chunks] == image.chunks[
                    piece.first : piece.first + piece.count
                ]
            stored[position] = image.blob[piece.offset + position]


def test_wrong_length_of_the_stored_bytes() -> None:
    image = built(Compressor.NONE, Digester.BLAKE3, 0)
    table = ChunkTable.from_meta(image.meta, entry_of(image))
    digests = Bootstrap(image.bootstrap).chunk_digests(0)
    piece = table.piece(1)
    for stored in (b"", image.read_at(piece.offset, piece.size - 1)):
        with pytest.raises(IntegrityError, match=rf"chunk 1, .*: {len(stored)} bytes instead of"):
            decode_piece(table, piece, stored, digests, "b")


class Fixed:
    """Digests of one's own making."""

    def __init__(self, entries: dict[int, ChunkEntry], *, covered: bool) -> None:
        self.entries = entries
        self.covered = covered

    def find(self, chunk_index: int) -> ChunkEntry | None:
        return self.entries.get(chunk_index)

    def overlaps(self, offset: int, size_bytes: int) -> bool:
        return self.covered


def test_a_chunk_cannot_be_moved_or_swapped() -> None:
    image = built(Compressor.NONE, Digester.BLAKE3, 0)
    table = ChunkTable.from_meta(image.meta, entry_of(image))
    entry = Bootstrap(image.bootstrap).chunk_digests(0).find(0)
    assert entry is not None
    piece = table.piece(0)
    stored = image.read_at(piece.offset, piece.size)
    for wrong, message in [
        (entry._replace(uncompressed_offset=4096), "the bootstrap 8192 at 4096"),
        (entry._replace(uncompressed_size=8191), "the bootstrap 8191 at 0"),
        (entry._replace(digest=bytes(32)), "wrong digest"),
    ]:
        with pytest.raises(IntegrityError, match=message):
            decode_piece(table, piece, stored, Fixed({0: wrong}, covered=True), "b")


def test_unknown_chunks_are_left_out_unless_they_cover_known_ones() -> None:
    image = built(Compressor.ZSTD, Digester.BLAKE3, 2000)
    table = ChunkTable.from_meta(image.meta, entry_of(image))
    piece = next(piece for piece in table.pieces() if piece.count > 2)
    stored = image.read_at(piece.offset, piece.size)
    known = Bootstrap(image.bootstrap).chunk_digests(0)
    entries = {number: known.find(number) for number in range(table.chunk_count)}
    only = {piece.first + 1: entries[piece.first + 1]}
    found = decode_piece(table, piece, stored, Fixed(only, covered=False), "b")  # type: ignore[arg-type]
    assert [number for number, _ in found] == [piece.first + 1]
    with pytest.raises(IntegrityError, match="over another chunk"):
        decode_piece(table, piece, stored, Fixed(only, covered=True), "b")  # type: ignore[arg-type]


def test_batch_members_outside_of_their_batch() -> None:
    image = built(Compressor.ZSTD, Digester.BLAKE3, 2000)
    meta = bytearray(image.meta)
    entry = entry_of(image)
    table = ChunkTable.from_meta(image.meta, entry)
    piece = next(piece for piece in table.pieces() if piece.count > 2)
    word = (piece.first * 3 + 2) * 8
    (value,) = struct.unpack_from("<Q", meta, word)
    struct.pack_into("<Q", meta, word, value | 0xFFFFFFFF)
    lying = ChunkTable.from_meta(bytes(meta), entry)
    digests = Bootstrap(image.bootstrap).chunk_digests(0)
    with pytest.raises(IntegrityError, match="reaches out of its batch"):
        decode_piece(lying, piece, image.read_at(piece.offset, piece.size), digests, "b")


def test_zran_chunks_need_their_context() -> None:
    image = built(Compressor.ZSTD, Digester.BLAKE3, 2000)
    meta = bytearray(image.meta)
    meta[7] |= 2
    table = ChunkTable.from_meta(bytes(meta), entry_of(image))
    digests = Bootstrap(image.bootstrap).chunk_digests(0)
    with pytest.raises(FormatError, match="names context 0"):
        decode_piece(table, table.piece(0), b"", digests, "b")


def test_check_names_what_is_wrong_with_a_blob() -> None:
    image = built(Compressor.ZSTD, Digester.BLAKE3, 2000, inlined_digests=True)
    entry = entry_of(image)
    digests = Bootstrap(image.bootstrap).chunk_digests(0)

    def check(blob: bytes, changed: BlobEntry = entry, meta: bytes | None = None) -> None:
        check_blob(
            changed, digests, lambda offset, size: blob[offset : offset + size], len(blob), meta
        )

    def flipped(offset: int) -> bytes:
        return image.blob[:offset] + bytes([image.blob[offset] ^ 1]) + image.blob[offset + 1 :]

    check(image.blob)
    with pytest.raises(IntegrityError, match="chunk 0"):
        check(flipped(5))
    with pytest.raises(IntegrityError, match="table of contents"):
        check(flipped(len(image.blob) - 700))
    with pytest.raises((IntegrityError, FormatError), match=r"Section|zstd|contents"):
        check(flipped(entry.ci_offset + 30))
    with pytest.raises(IntegrityError, match=r"section 'blob\.digest'"):
        check(flipped(entry.ci_offset + entry.ci_compressed_size + 4096 + 512 + 8))
    with pytest.raises(FormatError, match="not the one in the image"):
        check(image.blob, meta=image.meta[:-1] + b"\0")
    with pytest.raises(FormatError, match="not where it is said"):
        check(image.blob, entry._replace(ci_offset=entry.ci_offset + 1))
    with pytest.raises(FormatError, match="does not follow the data"):
        start = entry.ci_offset
        between = image.blob[:start] + tar_header("other", 0) + image.blob[start:]
        check(between, entry._replace(ci_offset=start + 512))
    with pytest.raises(FormatError, match="behind the end"):
        check(b"", entry._replace(features=0x40000085))


def test_data_without_any_reference_verifies_nothing() -> None:
    image = built(Compressor.ZSTD, Digester.BLAKE3, 2000)
    table = ChunkTable.from_meta(image.meta, entry_of(image))
    nothing = ChunkEntries(b"", 0, 0, [])
    assert nothing.count == 0
    assert check_data(table, Fixed({}, covered=False), image.read_at) == 0
