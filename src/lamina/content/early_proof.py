"""Proves pages of a start artifact before the image is open: those of the bootstrap by its root,
and those of blobs by the entries of the chunk table that came with it.
"""

from __future__ import annotations

from bisect import bisect_right

from lamina.blob.page_proof import PAGE_BYTES, ChunkPages, prove, sibling_count
from lamina.blob.start_artifact import Frame, Tables, open_frame
from lamina.erofs.layout import BlobEntry, ChunkEntry
from lamina.erofs.partial import NotHereError, PartialBootstrap
from lamina.errors import FormatError, IntegrityError, UnsupportedError
from lamina.oci.bootstrap_root import BootstrapRoot


def is_of_bootstrap(tables: Tables, frame: Frame, root: BootstrapRoot | None) -> bool:
    """Tell whether a frame has pages of the bootstrap with this root."""
    return root is not None and any(tables.blob_ids[part.owner] == root.hex for part in frame.pages)


def prove_bootstrap(
    tables: Tables, frame: Frame, stored: bytes, root: BootstrapRoot
) -> dict[int, memoryview]:
    """Return the pages of the bootstrap that a frame has, by number.

    Raises IntegrityError or FormatError if they are not those of *root*, UnsupportedError without
    numpy.
    """
    siblings, data = open_frame(frame, stored)
    pages = [page for part in frame.pages for page in range(part.first, part.stop)]
    if any(tables.blob_ids[part.owner] != root.hex for part in frame.pages):
        raise FormatError("a frame of the start artifact has pages of the bootstrap and of blobs")
    if pages[-1] * PAGE_BYTES >= root.size_bytes:
        raise FormatError("the start artifact has pages behind the end of the bootstrap")
    if frame.sibling_count != sibling_count(root.size_bytes, pages):
        raise FormatError("the start artifact has not the siblings that its pages need")
    proof = ChunkPages(bytes.fromhex(root.hex), root.size_bytes, pages, data, siblings)
    if not all(prove([proof])):
        raise IntegrityError(
            "the start artifact has wrong pages of the image's bootstrap",
            hint="record it again: lamina profile",
        )
    return {
        page: data[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
        for place, page in enumerate(pages)
    }


class EarlyChunks:
    """The chunks of a blob whose entries came ahead: a
    :class:`~lamina.content.start_proof.ProvableBlob`.
    """

    def __init__(self, bootstrap: PartialBootstrap, index: int) -> None:
        self.entry: BlobEntry = bootstrap.blobs[index]
        self._by_chunk = {entry.index: entry for entry in bootstrap.entries_here(index)}
        ordered = sorted(self._by_chunk.values(), key=lambda entry: entry.uncompressed_offset)
        self._starts = [entry.uncompressed_offset for entry in ordered]
        self._chunks = [entry.index for entry in ordered]

    @property
    def table(self) -> EarlyChunks:
        """Where its chunks are."""
        return self

    @property
    def digests(self) -> EarlyChunks:
        """What their digests are."""
        return self

    def has(self, offset: int, size_bytes: int) -> bool:  # noqa: ARG002 - as a blob has it
        """Return whether the node is known to have a range: nobody has looked."""
        return False

    def keep(self, chunk: int, offset: int, data: memoryview) -> None:  # noqa: ARG002 - as above
        """Raise UnsupportedError: where chunks are kept is not open."""
        raise UnsupportedError(f"chunk {chunk} came before there is a place for it")

    def chunks_in(self, offset: int, size: int) -> range:
        """Return the chunk at *offset*, for a range in one.  Raises NotHereError."""
        place = bisect_right(self._starts, offset) - 1
        if place >= 0:
            start, length = self.chunk_extent(self._chunks[place])
            if offset + size <= start + -(-length // PAGE_BYTES) * PAGE_BYTES:
                return range(self._chunks[place], self._chunks[place] + 1)
        raise NotHereError(f"no entry of the chunk at {offset} came ahead")

    def chunk_extent(self, chunk: int) -> tuple[int, int]:
        """Return the place and the size of a chunk."""
        entry = self._by_chunk[chunk]
        return entry.uncompressed_offset, entry.uncompressed_size

    def find(self, chunk_index: int) -> ChunkEntry | None:
        """Return the entry of a chunk."""
        return self._by_chunk.get(chunk_index)


def early_chunks(bootstrap: PartialBootstrap) -> dict[str, EarlyChunks]:
    """Return what proves pages of the blobs of an image, by blob id."""
    return {
        entry.blob_id: EarlyChunks(bootstrap, index) for index, entry in enumerate(bootstrap.blobs)
    }
