"""The chunk table of a blob ("CI table", RAFS v6 §2.4-2.6): which bytes of the blob hold which
chunks.

The records stay as the words they are on disk, in one flat array over the given buffer; a record is
decoded and checked when it is asked for.  So opening a table of a hundred thousand chunks costs
next to nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Self

from lamina.blob.ci_header import (
    MAX_TABLE_SIZE,
    check_ci_header,
    check_contexts,
    checked_table_size,
    encrypted_error,
    read_ci_header,
)
from lamina.blob.layout import (
    BATCH_CONTEXT,
    CHUNK_BATCH,
    CHUNK_COMPRESSED,
    CHUNK_ENCRYPTED,
    CHUNK_ZRAN,
    CI_HEADER_SIZE,
    COMPRESSED_OFFSET_MASK,
    CONTEXT_SIZE,
    MAX_ZRAN_DICTIONARY,
    MAX_ZRAN_INPUT,
    MAX_ZRAN_OUTPUT,
    V1_OFFSET_MASK,
    ZRAN_CONTEXT,
    CiHeader,
    ZranContext,
)
from lamina.blob.neighbours import run_around
from lamina.blob.piece import Piece
from lamina.blob.u64_array import as_bytes, as_u64s
from lamina.codec.compress import Compressor, decompress
from lamina.codec.zstd_span import decode_frames
from lamina.erofs.layout import BlobEntry, BlobFeature, round_up
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MAX_TABLE_SIZE", "ChunkTable", "Piece", "read_ci_header"]

CONTEXT_PART_BYTES = 64 << 10
"""How much further input a piece of a gzip context needs than the one before it, about."""

_WITH_CONTEXTS = BlobFeature.BATCH | BlobFeature.ZRAN


class ChunkTable:
    """The decoded chunk table of one blob.

    Chunk i lies at ``chunk_extent(i)`` in the blob's uncompressed address space.
    """

    def __init__(self, payload: Buffer, header: CiHeader, entry: BlobEntry) -> None:
        check_ci_header(header, entry)
        self.entry = entry
        self.blob_id = entry.blob_id
        self.header = header
        self.chunk_count = entry.chunk_count
        self.uncompressed_size = entry.uncompressed_size
        self._is_v2 = bool(entry.features & BlobFeature.CHUNK_INFO_V2)
        self._words_per_record = 3 if self._is_v2 else 2
        self._limit = entry.compressed_data_size
        is_zran = bool(entry.features & BlobFeature.ZRAN)
        # Asked for every chunk of every read, where the enum would take longest.
        self._sharing_flag = int(CHUNK_ZRAN if is_zran else CHUNK_BATCH)
        # Pieces then share stored bytes, so that it pays to keep what was fetched.
        self.cuts_contexts = is_zran and entry.compressor == Compressor.GZIP
        view = memoryview(payload).cast("B")
        if len(view) != self._plain_size():
            raise self._bad(f"is {len(view)} bytes long, not {self._plain_size()}")
        records_size = self.chunk_count * self._words_per_record * 8
        self._words = as_u64s(view[:records_size])
        self._extra = view[records_size:]
        if entry.features & _WITH_CONTEXTS:
            check_contexts(header, entry, records_size)

    @classmethod
    def from_meta(cls, buffer: Buffer, entry: BlobEntry) -> Self:
        """Return the table of an ``image/<blob>.blob.meta``: padded payload, then header.

        Raises FormatError: the header contradicts the blob table entry, or the length is wrong;
        UnsupportedError: the blob is encrypted with AES-XTS, or has no chunk table.
        """
        view = memoryview(buffer).cast("B")
        padded_size = round_up(checked_table_size(entry), 4096)
        if len(view) != padded_size + CI_HEADER_SIZE:
            raise FormatError(
                f"chunk table of blob {entry.blob_id}: file of {len(view)} bytes, "
                f"expected {padded_size + CI_HEADER_SIZE}"
            )
        header = read_ci_header(view[padded_size:], entry.blob_id)
        return cls(view[: entry.ci_uncompressed_size], header, entry)

    @classmethod
    def from_stored(cls, buffer: Buffer, entry: BlobEntry) -> Self:
        """Return the table of ``ci_compressed_size`` + 4096 bytes at ``ci_offset`` of a blob."""
        size = checked_table_size(entry)
        view = memoryview(buffer).cast("B")
        if len(view) != entry.ci_compressed_size + CI_HEADER_SIZE:
            raise FormatError(f"chunk table of blob {entry.blob_id}: {len(view)} bytes is too few")
        header = read_ci_header(view[entry.ci_compressed_size :], entry.blob_id)
        stored = view[: entry.ci_compressed_size]
        payload: Buffer = stored
        if entry.ci_compressor == Compressor.ZSTD:
            # In one frame or several, see lamina.blob.split_table.
            payload = decode_frames(stored, size, exact=True)
        elif entry.ci_compressor != Compressor.NONE:
            payload = decompress(Compressor(entry.ci_compressor), stored, size)
        return cls(payload, header, entry)

    def close(self) -> None:
        """Release the buffer, which an mmap needs before it can be closed itself."""
        if isinstance(self._words, memoryview):
            self._words.release()
        self._extra.release()

    def to_meta(self) -> bytes:
        """Return the form that :meth:`from_meta` reads."""
        payload = as_bytes(self._words) + bytes(self._extra)
        return payload.ljust(round_up(len(payload), 4096), b"\0") + self.header.pack()

    def chunk_extent(self, chunk: int) -> tuple[int, int]:
        """Return (offset, size) of a chunk in the uncompressed address space, in bytes."""
        self._check_chunk_number(chunk)
        word = self._words[chunk * self._words_per_record]
        if self._is_v2:
            offset, size = (word & 0xFFFFFFFF) << 12, (word >> 32 & 0xFFFFFF) + 1
        else:
            offset, size = word & V1_OFFSET_MASK, (word >> 44 | (word >> 8 & 0xF) << 20) + 1
        if size > self.entry.chunk_size or offset + size > self.uncompressed_size:
            raise self._bad(f"chunk {chunk} does not fit in the blob")
        return offset, size

    def chunk_flags(self, chunk: int) -> int:
        """Return the V2 flags of a chunk; those of a V1 record are derived from its sizes."""
        self._check_chunk_number(chunk)
        if self._is_v2:
            return self._words[chunk * 3] >> 56
        return 0 if self._stored(chunk)[1] == self.chunk_extent(chunk)[1] else CHUNK_COMPRESSED

    def chunks_in(self, offset: int, size_bytes: int) -> range:
        """Return the numbers of the chunks that cover a range of the uncompressed address space.

        The range is cut at the end of the blob.

        Raises FormatError: some part of the range belongs to no chunk.
        """
        end = min(offset + size_bytes, self.uncompressed_size)
        if offset < 0 or offset >= end:
            return range(0)
        first = self._chunk_at(offset)
        last, covered = first, self._cover(first, offset)
        while covered < end:
            last += 1
            covered = self._cover(last, covered)
        return range(first, last + 1)

    def _chunk_at(self, offset: int) -> int:
        """Return the last chunk that begins at or before *offset*."""
        # Every read comes through here, so the bare words are searched; _cover checks the result.
        words, step = self._words, self._words_per_record
        mask, wanted = (0xFFFFFFFF, offset >> 12) if self._is_v2 else (V1_OFFSET_MASK, offset)
        low, high = 0, self.chunk_count
        while high - low > 1:
            middle = (low + high) // 2
            if words[middle * step] & mask <= wanted:
                low = middle
            else:
                high = middle
        return low

    def _cover(self, chunk: int, offset: int) -> int:
        """Return where the chunk that must hold *offset* ends, with its padding."""
        if chunk < self.chunk_count:
            start, size = self.chunk_extent(chunk)
            end = round_up(start + size, 4096)
            if start <= offset < end:
                return end
        raise self._bad(f"no chunk covers byte {offset} of the uncompressed space")

    @cached_property
    def _piece_firsts(self) -> array[int] | None:
        """First chunk of each piece; None where every chunk is a piece of its own."""
        if self.entry.features & BlobFeature.ZRAN:
            return self._context_firsts()
        if not self.entry.features & BlobFeature.BATCH:
            return None
        firsts = array("I")
        expected = 0
        previous = -1
        words = iter(self._words)
        for chunk, (word, _, data) in enumerate(zip(words, words, words, strict=True)):
            if not word >> 56 & CHUNK_BATCH:
                previous = -1
                firsts.append(chunk)
            elif data >> 32 != previous:
                previous = data >> 32
                if previous != expected:
                    raise self._bad(f"batch {previous} is out of order at chunk {chunk}")
                expected += 1
                firsts.append(chunk)
        return firsts

    def _context_firsts(self) -> array[int]:
        firsts = array("I")
        previous: int | None = None
        for chunk in range(self.chunk_count):
            context = self._group_of(chunk)
            if context is None or context != previous:
                firsts.append(chunk)
            previous = context
        return firsts

    @property
    def piece_count(self) -> int:
        """Number of pieces, at most the number of chunks."""
        firsts = self._piece_firsts
        return self.chunk_count if firsts is None else len(firsts)

    def piece_of(self, chunk: int) -> int:
        """Return the number of the piece that holds a chunk."""
        self._check_chunk_number(chunk)
        firsts = self._piece_firsts
        return chunk if firsts is None else bisect_right(firsts, chunk) - 1

    def piece(self, piece: int) -> Piece:
        """Return piece number *piece*.

        Raises FormatError: it reaches out of the data region of the blob, or its sizes contradict
        each other; UnsupportedError: it is encrypted with AES-XTS.
        """
        if not 0 <= piece < self.piece_count:
            raise self._bad(f"there is no piece {piece}")
        firsts = self._piece_firsts
        first = piece if firsts is None else firsts[piece]
        return self._piece(piece, first, self._piece_end(piece) - first)

    def piece_holding(self, chunk: int) -> Piece:
        """Return the piece that holds a chunk, found from its neighbours; its ``index`` is -1.

        Other than with :meth:`piece_of` nothing is counted first, so one read of a big blob stays
        cheap, and however many chunks share a pack.

        Raises FormatError, UnsupportedError: as :meth:`piece`.
        """
        members = self.neighbours(chunk)
        return self._piece(-1, members.start, len(members))

    def neighbours(self, chunk: int) -> range:
        """Return the chunks that share a piece with a chunk, which is one of them.

        In a table that is not in order, some between them may belong elsewhere; their digests tell.
        """
        group = self._group_of(chunk)
        if group is None:
            return range(chunk, chunk + 1)
        return run_around(lambda other: self._group_of(other) == group, chunk, self.chunk_count)

    def _group_of(self, chunk: int) -> int | None:
        """Return the number of the batch, or of the part of a context, that a chunk shares with its
        neighbours.
        """
        if not self.chunk_flags(chunk) & self._sharing_flag:
            return None
        group: int = self._words[chunk * 3 + 2] >> 32
        if self.cuts_contexts:
            group = group << 32 | self._context_bytes(chunk) // CONTEXT_PART_BYTES
        return group

    def _context_bytes(self, chunk: int) -> int:
        """Return how much input of its context a gzip chunk needs."""
        context = self.zran_contexts[self.zran_context_of(chunk)]
        return min(max(sum(self._stored(chunk)) - context.in_offset, 0), context.in_size)

    def _piece(self, index: int, first: int, count: int) -> Piece:
        flags = self.chunk_flags(first)
        if flags & CHUNK_ENCRYPTED:
            raise encrypted_error(self.blob_id)
        offset, size = self._stored(first)
        compressed = bool(flags & CHUNK_COMPRESSED)
        raw_size = self.chunk_extent(first)[1]
        if flags & CHUNK_BATCH:
            size, raw_size = self._batch_context(self._words[first * 3 + 2] >> 32)
            compressed = size != raw_size
        elif flags & CHUNK_ZRAN:
            context = self.zran_contexts[self.zran_context_of(first)]
            offset, size, raw_size = context.in_offset, context.in_size, context.out_size
            # Stored blocks may make a span longer than what it yields, but not by much.
            if not 0 < raw_size <= MAX_ZRAN_OUTPUT or size > MAX_ZRAN_INPUT:
                raise self._bad(f"the context of chunk {first} claims {raw_size} bytes in {size}")
            compressed = True
            if self.cuts_contexts:
                members = range(first, first + count)
                size = max(map(self._context_bytes, members))
                ends = (self.offset_in_piece(n) + self.chunk_extent(n)[1] for n in members)
                raw_size = min(raw_size, max(ends))
        if size == 0 or offset + size > self._limit:
            raise self._bad(f"the piece of chunk {first} lies outside the data of the blob")
        if not compressed and size != raw_size:
            raise self._bad(f"the piece of chunk {first} is not compressed but has two sizes")
        return Piece(index, offset, size, raw_size, compressed, first, count)

    def opened(self, piece: Piece, stored: memoryview) -> memoryview:  # noqa: ARG002 - for sealed
        """Return the bytes of a piece as they were compressed; only sealing makes a difference."""
        return stored

    def preparations(
        self,
        pieces: Iterable[Piece],  # noqa: ARG002 - for split tables
    ) -> Iterator[Callable[[], None]]:
        """Yield what has to be done before pieces can be decoded: nothing where all is here."""
        return iter(())

    def forget_prepared(self) -> None:
        """Forget what :meth:`preparations` got: bytes that were decoded with it are wrong."""

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces in order."""
        return map(self.piece, range(self.piece_count))

    def offset_in_piece(self, chunk: int) -> int:
        """Return where a chunk begins in the plaintext of its piece, or of its zran context."""
        if self.chunk_flags(chunk) & (CHUNK_BATCH | CHUNK_ZRAN):
            return self._words[chunk * 3 + 2] & 0xFFFFFFFF
        return 0

    def zran_context_of(self, chunk: int) -> int:
        """Return the number of the context that a zran chunk is inflated from."""
        if not self.chunk_flags(chunk) & CHUNK_ZRAN:
            raise self._bad(f"chunk {chunk} is no gzip random-access chunk")
        context = self._words[chunk * 3 + 2] >> 32
        if context >= len(self.zran_contexts):
            raise self._bad(f"chunk {chunk} names context {context}, not there")
        return context

    @cached_property
    def zran_contexts(self) -> tuple[ZranContext, ...]:
        """The gzip random-access points, in order; empty for other blobs."""
        if not self.entry.features & BlobFeature.ZRAN:
            return ()
        area = self._extra[: self.header.context_count * CONTEXT_SIZE]
        return tuple(map(ZranContext._make, ZRAN_CONTEXT.iter_unpack(area)))

    def zran_dictionary(self, context: ZranContext) -> memoryview:
        """Return the inflate window that a context starts with."""
        start = self.header.context_count * CONTEXT_SIZE + context.dict_offset
        end = start + context.dict_size
        if end > self.header.context_size or context.dict_size > MAX_ZRAN_DICTIONARY:
            raise self._bad("an inflate dictionary lies outside the table")
        return self._extra[start:end]

    def _stored(self, chunk: int) -> tuple[int, int]:
        word = self._words[chunk * self._words_per_record + 1]
        if self._is_v2:
            return word & COMPRESSED_OFFSET_MASK, word >> 40
        return word & COMPRESSED_OFFSET_MASK, (word >> 44 | (word >> 40 & 0xF) << 20) + 1

    def _batch_context(self, batch: int) -> tuple[int, int]:
        if not self.entry.features & BlobFeature.BATCH or batch >= self.header.context_count:
            raise self._bad(f"batch {batch} is not there")
        size, raw_size = BATCH_CONTEXT.unpack_from(self._extra, batch * CONTEXT_SIZE)
        if not 0 < raw_size <= self.entry.chunk_size or size > self.entry.chunk_size:
            raise self._bad(f"batch {batch} claims {raw_size} bytes in {size}")
        return size, raw_size

    def _piece_end(self, piece: int) -> int:
        firsts = self._piece_firsts
        if firsts is None:
            return piece + 1
        return firsts[piece + 1] if piece + 1 < len(firsts) else self.chunk_count

    def _plain_size(self) -> int:
        """Return how long the payload must be."""
        return self.entry.ci_uncompressed_size

    def _check_chunk_number(self, chunk: int) -> None:
        if not 0 <= chunk < self.chunk_count:
            raise self._bad(f"there is no chunk {chunk}")

    def _bad(self, what: str) -> FormatError:
        return FormatError(f"chunk table of blob {self.entry.blob_id}: {what}")
