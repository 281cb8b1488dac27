"""Writes what describes the chunks of a blob: its chunk table, and their entries in the bootstrap.

A blob is described by columns: the size of every chunk, how many chunks each piece holds, and how
many bytes each piece takes in the file.  Pieces are stored back to back from offset 0, in chunk
order; in the uncompressed address space every chunk begins at the next multiple of 4096 (RAFS v6
§2.3).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import accumulate, islice
from typing import NamedTuple

from lamina.blob.layout import (
    BATCH_CONTEXT,
    CHUNK_BATCH,
    CHUNK_COMPRESSED,
    MAX_STORED_SIZE_V2,
    CiHeader,
    pack_v1,
)
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import DIGEST_SIZE
from lamina.erofs.layout import (
    BLOCK_SIZE,
    CHUNK_ENTRY,
    CHUNK_FLAG_COMPRESSED,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS_PER_BLOB,
    BlobFeature,
    round_up,
)
from lamina.errors import FormatError


class BlobColumns(NamedTuple):
    """The chunks and pieces of one blob; sizes in bytes.

    ``chunk_sizes`` has one value a chunk, ``piece_counts`` (chunks in it) and ``piece_sizes``
    (stored bytes) one a piece.  A piece is compressed if its stored size is not the sum of its
    chunks' sizes.
    """

    chunk_sizes: array[int]
    piece_counts: array[int]
    piece_sizes: array[int]

    @property
    def data_size(self) -> int:
        """Stored bytes of all pieces."""
        return sum(self.piece_sizes)

    @property
    def uncompressed_size(self) -> int:
        """Size of the uncompressed address space."""
        return sum(round_up(size, BLOCK_SIZE) for size in self.chunk_sizes)

    @property
    def has_batches(self) -> bool:
        """Whether some piece holds several chunks."""
        return len(self.piece_counts) != len(self.chunk_sizes)

    def check(self) -> None:
        """Raise FormatError if the columns contradict each other or do not fit in a table."""
        if sum(self.piece_counts) != len(self.chunk_sizes) or 0 in self.piece_counts:
            raise FormatError("the pieces of the blob do not hold its chunks")
        if len(self.piece_counts) != len(self.piece_sizes) or 0 in self.piece_sizes:
            raise FormatError("a piece of the blob has no stored size")
        if len(self.chunk_sizes) >= MAX_CHUNKS_PER_BLOB:
            raise FormatError(
                f"a blob of {len(self.chunk_sizes)} chunks; at most {MAX_CHUNKS_PER_BLOB - 1} fit",
                hint="choose a larger chunk size",
            )
        if self.chunk_sizes and not 0 < min(self.chunk_sizes) <= max(self.chunk_sizes) <= (
            MAX_CHUNK_SIZE
        ):
            raise FormatError("a chunk of the blob is empty or larger than 16 MiB")
        limit = MAX_STORED_SIZE_V2 if self.has_batches else MAX_CHUNK_SIZE
        if self.piece_sizes and max(self.piece_sizes) > limit:
            raise FormatError(
                f"a piece takes {max(self.piece_sizes)} bytes; at most {limit} can be recorded",
                hint="choose a smaller chunk size, or no packs",
            )


class EncodedTable(NamedTuple):
    """A chunk table: ``stored`` and ``header.pack()`` go into the blob; ``payload`` is plain."""

    payload: bytes
    stored: bytes
    header: CiHeader


def encode_table(columns: BlobColumns, features: int, ci_offset: int) -> EncodedTable:
    """Return the chunk table of a blob, which will lie at *ci_offset* of the blob file.

    *features* are the feature bits of the blob, without those of the table's own form, which are
    added.  The table is compressed with zstd whatever the chunks are compressed with, because a
    table of contents cannot name lz4 (RAFS v6 §2.7); it is kept plain if that does not shrink it.

    Raises FormatError: see :meth:`BlobColumns.check`.
    """
    columns.check()
    if columns.has_batches:
        records, contexts = _v2_records(columns)
        features |= BlobFeature.CHUNK_INFO_V2 | BlobFeature.BATCH
    else:
        records, contexts = _v1_records(columns), b""
    payload = records + contexts
    stored = compress(Compressor.ZSTD, payload)
    compressor = Compressor.ZSTD
    if len(stored) >= len(payload):
        stored, compressor = payload, Compressor.NONE
    header = CiHeader(
        features=features,
        compressor=compressor,
        entries=len(columns.chunk_sizes),
        offset=ci_offset,
        compressed_size=len(stored),
        uncompressed_size=len(payload),
        context_offset=len(records) if contexts else 0,
        context_size=len(contexts),
        context_count=len(contexts) // BATCH_CONTEXT.size,
    )
    return EncodedTable(payload, stored, header)


def encode_chunk_entries(
    columns: BlobColumns, digests: bytes | bytearray, blob_index: int
) -> bytearray:
    """Return the 80-byte entries of all chunks of a blob for the bootstrap (RAFS v6 §1.9).

    *digests* has 32 bytes a chunk, in chunk order.
    """
    if len(digests) != DIGEST_SIZE * len(columns.chunk_sizes):
        raise FormatError("there is not one digest for every chunk of the blob")
    flags, sizes, offsets = _entry_places(columns)
    if blob_index:
        flags = array("Q", map(blob_index.__or__, flags))
    addresses = array("Q", islice(_addresses(columns), len(columns.chunk_sizes)))
    return entries_of_columns(digests, flags, sizes, offsets, addresses)


def entries_of_columns(
    digests: bytes | bytearray,
    flags: array[int],
    sizes: array[int],
    offsets: array[int],
    addresses: array[int],
) -> bytearray:
    """Return chunk entries (RAFS v6 §1.9): of each blob index | flags << 32, stored size | size <<
    32, offset and address; the columns are used up.
    """
    entries = bytearray(CHUNK_ENTRY.size * len(sizes))
    step, first = CHUNK_ENTRY.size // 8, DIGEST_SIZE // 8
    indexes = array("Q", range(len(sizes)))
    with memoryview(entries).cast("Q") as words, memoryview(digests).cast("Q") as digest_words:
        for column in range(first):
            words[column::step] = digest_words[column::first]
        # Between address and index is the offset in a file, 0.
        for column, values in ((0, flags), (1, sizes), (2, offsets), (3, addresses), (5, indexes)):
            if sys.byteorder == "big":
                values.byteswap()
            words[first + column :: step] = values
    return entries


def _addresses(columns: BlobColumns) -> Iterator[int]:
    steps = ((size + BLOCK_SIZE - 1) & -BLOCK_SIZE for size in columns.chunk_sizes)
    return accumulate(steps, initial=0)


def _entry_places(columns: BlobColumns) -> tuple[array[int], array[int], array[int]]:
    """Return of each chunk flags << 32, stored size | size << 32, and offset; what is stored of one
    in a batch is zero.
    """
    sizes = array("Q", (size << 32 for size in columns.chunk_sizes))
    flags, offsets = array("Q", bytes(8 * len(sizes))), array("Q", bytes(8 * len(sizes)))
    chunk = offset = 0
    for count, stored_size in zip(columns.piece_counts, columns.piece_sizes, strict=True):
        if count == 1:
            if columns.chunk_sizes[chunk] != stored_size:
                flags[chunk] = CHUNK_FLAG_COMPRESSED << 32
            sizes[chunk] |= stored_size
            offsets[chunk] = offset
        chunk += count
        offset += stored_size
    return flags, sizes, offsets


def _v1_records(columns: BlobColumns) -> bytes:
    words = array("Q")
    offset = 0
    for size, address, stored_size in zip(
        columns.chunk_sizes, _addresses(columns), columns.piece_sizes, strict=False
    ):
        words.extend(pack_v1(address, size, offset, stored_size))
        offset += stored_size
    return _little_endian(words)


def _v2_records(columns: BlobColumns) -> tuple[bytes, bytes]:
    words = array("Q")
    contexts: list[bytes] = []
    addresses = _addresses(columns)
    sizes = columns.chunk_sizes
    chunk = offset = 0
    for count, stored_size in zip(columns.piece_counts, columns.piece_sizes, strict=True):
        if count == 1:
            flags = 0 if sizes[chunk] == stored_size else CHUNK_COMPRESSED
            first = next(addresses) >> 12 | (sizes[chunk] - 1) << 32 | flags << 56
            words.extend((first, offset | stored_size << 40, 0))
        else:
            data = len(contexts) << 32
            raw_size = 0
            for size in sizes[chunk : chunk + count]:
                words.extend((next(addresses) >> 12 | size - 1 << 32 | _BATCHED, offset, data))
                data += size
                raw_size += size
            contexts.append(BATCH_CONTEXT.pack(stored_size, raw_size))
        chunk += count
        offset += stored_size
    return _little_endian(words), b"".join(contexts)


_BATCHED = (CHUNK_COMPRESSED | CHUNK_BATCH) << 56


def _little_endian(words: array[int]) -> bytes:
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
