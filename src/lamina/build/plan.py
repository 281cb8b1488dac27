"""Second phase of a conversion: find duplicate chunks, and give every new one its place before it
is compressed.

A chunk that an earlier file or a lower layer has is a reference to it.  The others become pieces of
the layer's blob: a full chunk alone, small files and tails of files together in packs.  A pack
stays open across full chunks, so that the small files around a large one still share it; its
members get consecutive numbers when it is closed.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from lamina.build.pack import Segment
from lamina.build.scan import LayerScan
from lamina.codec.digest import DIGEST_SIZE
from lamina.erofs.layout import (
    BLOCK_SIZE,
    MAX_BLOB_UNCOMPRESSED_SIZE,
    MAX_CHUNKS_PER_BLOB,
    round_up,
)
from lamina.errors import FormatError

SEGMENT_BYTES = 8 << 20
"""Plaintext of one packing task: small enough that the last one does not keep the other processors
waiting.
"""

LAYER_SHIFT = 32
SLOT_MASK = (1 << LAYER_SHIFT) - 1


class KnownChunks:
    """Digest -> (layer, slot) of the first chunk with it, over all layers so far."""

    def __init__(self) -> None:
        self._found: dict[bytes, int] = {}

    def resolve(self, layer: int, digests: bytes) -> tuple[array[int], array[int]]:
        """Return (a reference per chunk, the numbers of the chunks that are new), adding the new
        ones.

        A reference is ``layer << 32 | slot``; slots count the new chunks of a layer in archive
        order.
        """
        references = array("Q")
        fresh = array("I")
        setdefault, add = self._found.setdefault, references.append
        own = layer << LAYER_SHIFT
        for number, start in enumerate(range(0, len(digests), DIGEST_SIZE)):
            reference = setdefault(digests[start : start + DIGEST_SIZE], own)
            add(reference)
            if reference == own:
                fresh.append(number)
                own += 1
        return references, fresh


@dataclass(slots=True)
class LayerPlan:
    """The new chunks of a layer in storage order, which is their numbering in the blob.

    ``references`` has one ``layer << 32 | slot`` for each chunk of each file; ``encoded`` maps a
    slot to its EROFS chunk index without the device (RAFS v6 §1.11).  ``chunks`` maps a chunk
    number to its number in the scan, and ``addresses`` to its place in the blob's uncompressed
    space.  ``piece_counts`` is the number of chunks a piece.
    """

    layer: int
    references: array[int]
    chunks: array[int] = field(default_factory=lambda: array("I"))
    chunk_sizes: array[int] = field(default_factory=lambda: array("I"))
    addresses: array[int] = field(default_factory=lambda: array("Q"))
    encoded: array[int] = field(default_factory=lambda: array("Q"))
    piece_counts: array[int] = field(default_factory=lambda: array("I"))
    uncompressed_size: int = 0
    new_bytes: int = 0

    @property
    def chunk_count(self) -> int:
        """Number of chunks in the layer's own blob."""
        return len(self.chunks)

    @property
    def lower_layers(self) -> list[int]:
        """The lower layers that this one takes chunks from."""
        found = {reference >> LAYER_SHIFT for reference in self.references}
        return sorted(found - {self.layer})

    def digests(self, scan: LayerScan) -> bytes:
        """Return the digests of the blob's chunks, 32 bytes each, by chunk number."""
        source = scan.digests
        return b"".join(
            [source[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE] for number in self.chunks]
        )


def plan_layer(layer: int, scan: LayerScan, known: KnownChunks, pack_size: int) -> LayerPlan:
    """Plan the blob of a layer; lower layers must have been planned with the same ``known``.

    Raises FormatError if the layer does not fit in one blob.
    """
    references, fresh = known.resolve(layer, scan.digests)
    plan = LayerPlan(layer, references)
    slot_sizes = array("I", [scan.chunk_sizes[number] for number in fresh])
    order = _storage_order(slot_sizes, scan.chunk_size, pack_size, plan.piece_counts)
    plan.chunks = array("I", [fresh[slot] for slot in order])
    plan.chunk_sizes = array("I", [slot_sizes[slot] for slot in order])
    ends = accumulate((round_up(size, BLOCK_SIZE) for size in plan.chunk_sizes), initial=0)
    plan.addresses = array("Q", ends)
    plan.uncompressed_size = plan.addresses.pop()
    plan.new_bytes = sum(slot_sizes)
    if len(order) >= MAX_CHUNKS_PER_BLOB or plan.uncompressed_size > MAX_BLOB_UNCOMPRESSED_SIZE:
        raise FormatError(
            f"The layer has {len(order)} chunks, which do not fit in one blob.",
            hint="Choose a larger chunk size.",
        )
    plan.encoded = array("Q", bytes(8 * len(order)))
    for index, (slot, address) in enumerate(zip(order, plan.addresses, strict=True)):
        plan.encoded[slot] = index & 0xFFFF | index >> 16 << 24 | address >> 12 << 32
    return plan


def _storage_order(
    sizes: array[int], chunk_size: int, pack_size: int, piece_counts: array[int]
) -> list[int]:
    """Return the slots in storage order, appending the number of chunks of each piece to
    ``piece_counts``.
    """
    order: list[int] = []
    pack: list[int] = []
    pack_bytes = 0
    for slot, size in enumerate(sizes):
        if size == chunk_size or size > pack_size:
            order.append(slot)
            piece_counts.append(1)
            continue
        if pack_bytes + size > pack_size:
            order += pack
            piece_counts.append(len(pack))
            pack = []
            pack_bytes = 0
        pack.append(slot)
        pack_bytes += size
    if pack:
        order += pack
        piece_counts.append(len(pack))
    return order


def segments(
    plan: LayerPlan, scan: LayerScan, room_of: Callable[[int], int] = int
) -> Iterator[Segment]:
    """Cut the plan into packing tasks; ``room_of`` tells what a piece of some bytes can take."""
    offsets = array("Q", [scan.chunk_offsets[number] for number in plan.chunks])
    first_chunk = first_piece = 0
    chunk = packed_offset = size = room = 0
    for piece, count in enumerate(plan.piece_counts, 1):
        piece_size = sum(plan.chunk_sizes[chunk : chunk + count])
        size += piece_size
        room += room_of(piece_size)
        chunk += count
        if size >= SEGMENT_BYTES or piece == len(plan.piece_counts):
            yield Segment(
                packed_offset,
                offsets[first_chunk:chunk],
                plan.chunk_sizes[first_chunk:chunk],
                plan.piece_counts[first_piece:piece],
                first_piece,
            )
            packed_offset += room
            first_chunk, first_piece, size, room = chunk, piece, 0, 0


def encode_references(
    references: array[int], plans: Sequence[LayerPlan], blob_indexes: Mapping[int, int]
) -> bytes:
    """Return the 8-byte EROFS chunk indexes of references, the layers' blobs being numbered by
    ``blob_indexes``.
    """
    devices = {layer: (index + 1) << 16 for layer, index in blob_indexes.items()}
    tables = [plan.encoded for plan in plans]
    words = array(
        "Q",
        [
            tables[reference >> LAYER_SHIFT][reference & SLOT_MASK]
            | devices[reference >> LAYER_SHIFT]
            for reference in references
        ],
    )
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
