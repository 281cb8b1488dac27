"""Prove the pages of a frame of a start artifact by the chunk digests of the opened image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from lamina.blob.page_proof import (
    PAGE_BYTES,
    SIBLING_BYTES,
    ChunkPages,
    page_count,
    prove,
    sibling_count,
)
from lamina.blob.start_artifact import Frame, Tables, open_frame
from lamina.codec.digest import Digester
from lamina.erofs.layout import BlobEntry, ChunkEntry
from lamina.errors import FormatError, IntegrityError


class ChunkPlaces(Protocol):
    """Where the chunks of a blob are, as a chunk table knows it."""

    @property
    def entry(self) -> BlobEntry:
        """The blob."""

    def chunks_in(self, offset: int, size: int, /) -> range:
        """Return the chunks in a range of the address space."""

    def chunk_extent(self, chunk: int, /) -> tuple[int, int]:
        """Return the place and the size of a chunk."""


class ChunkFinder(Protocol):
    """Who has the digests of the chunks of a blob."""

    def find(self, chunk_index: int, /) -> ChunkEntry | None:
        """Return the entry of a chunk, or None if no file of the image refers to it."""


class ProvableBlob(Protocol):
    """What proving needs of a blob."""

    @property
    def table(self) -> ChunkPlaces:
        """Where its chunks are."""

    @property
    def digests(self) -> ChunkFinder:
        """What their digests are."""


class ProvenChunk(NamedTuple):
    """Proven pages of a chunk: ``first_page`` is that of the chunk in its blob, ``pages`` count
    from there; ``size_bytes`` is that of the chunk.
    """

    blob_id: str
    chunk: int
    first_page: int
    size_bytes: int
    pages: tuple[int, ...]
    data: memoryview

    @property
    def is_whole(self) -> bool:
        """Whether all of the chunk is there."""
        return len(self.pages) == page_count(self.size_bytes)

    def by_page(self) -> dict[int, memoryview]:
        """Return the pages by their number in the blob."""
        return {
            self.first_page + page: self.data[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
            for place, page in enumerate(self.pages)
        }


class _Claim(NamedTuple):
    """Pages of one chunk that a frame claims to have."""

    blob_id: str
    chunk: int
    start: int
    size_bytes: int
    pages: list[int]


def prove_frame(
    tables: Tables,
    frame: Frame,
    stored: bytes,
    blobs: Mapping[str, ProvableBlob],
    *,
    only_whole: bool = False,
) -> list[ProvenChunk]:
    """Return the pages of a frame, by chunk, each proven by the digest of its chunk.

    With *only_whole* only chunks that are there as a whole, which takes no numpy.

    Raises IntegrityError or FormatError if anything in it is not what *blobs* have there.
    """
    siblings, data = open_frame(frame, stored)
    claims, proofs = [], []
    for claim in _claims(tables, frame, blobs):
        count = sibling_count(claim.size_bytes, claim.pages)
        mine, siblings = siblings[: count * SIBLING_BYTES], siblings[count * SIBLING_BYTES :]
        size = len(claim.pages) * PAGE_BYTES
        part, data = data[:size], data[size:]
        found = _digest(blobs[claim.blob_id], claim)
        proof = ChunkPages(found, claim.size_bytes, claim.pages, part, mine)
        if proof.is_whole or not only_whole:
            claims.append(claim)
            proofs.append(proof)
    if len(siblings):
        raise FormatError("a frame of the start artifact has more siblings than its pages need")
    for claim, is_right in zip(claims, prove(proofs), strict=True):
        if not is_right:
            raise IntegrityError(
                f"the start artifact has wrong pages of chunk {claim.chunk} of blob "
                f"{claim.blob_id}",
                hint="record it again: lamina profile",
            )
    return [
        ProvenChunk(
            claim.blob_id,
            claim.chunk,
            claim.start // PAGE_BYTES,
            claim.size_bytes,
            tuple(claim.pages),
            proof.data,
        )
        for claim, proof in zip(claims, proofs, strict=True)
    ]


def _claims(tables: Tables, frame: Frame, blobs: Mapping[str, ProvableBlob]) -> Iterator[_Claim]:
    """Cut the pages of a frame into chunks."""
    claim: _Claim | None = None
    for part in frame.pages:
        blob_id = tables.blob_ids[part.owner]
        blob = blobs.get(blob_id)
        if blob is None:
            raise FormatError(f"the start artifact has pages of {blob_id}, no blob of the image")
        for page in range(part.first, part.stop):
            if claim is not None and claim.blob_id == blob_id:
                own = page - claim.start // PAGE_BYTES
                if own < page_count(claim.size_bytes):
                    claim.pages.append(own)
                    continue
            if claim is not None:
                yield claim
            claim = _new_claim(blob_id, blob.table, page)
    if claim is not None:
        yield claim


def _new_claim(blob_id: str, table: ChunkPlaces, page: int) -> _Claim:
    chunks = table.chunks_in(page * PAGE_BYTES, 1)
    if not chunks:
        raise FormatError(f"the start artifact has the page {page} behind the end of {blob_id}")
    start, size = table.chunk_extent(chunks.start)
    if start % PAGE_BYTES:
        raise FormatError(f"chunk {chunks.start} of blob {blob_id} does not begin at a page")
    return _Claim(blob_id, chunks.start, start, size, [page - start // PAGE_BYTES])


def _digest(blob: ProvableBlob, claim: _Claim) -> bytes:
    entry = blob.digests.find(claim.chunk)
    extent = claim.start, claim.size_bytes
    if entry is None or (entry.uncompressed_offset, entry.uncompressed_size) != extent:
        raise FormatError(
            f"the start artifact has chunk {claim.chunk} of blob {claim.blob_id}, which no file has"
        )
    if blob.table.entry.digester != Digester.BLAKE3:
        raise FormatError(f"the chunk digests of blob {claim.blob_id} are not BLAKE3")
    return entry.digest
