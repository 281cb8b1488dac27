"""Find duplicate chunks, and give every new one its place in the blob of its layer, as they come.

A chunk that an earlier file or a lower layer has is a reference to it.  The others become pieces of
the layer's blob: a full chunk alone, small files and tails of files together in packs.  A pack
stays open across full chunks, so that the small files around a large one still share it; its
members get consecutive numbers when it is closed.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from lamina.build.known_chunks import LAYER_SHIFT, KnownChunks
from lamina.build.scan import LayerScan
from lamina.codec.digest import DIGEST_SIZE
from lamina.erofs.layout import (
    BLOCK_SIZE,
    MAX_BLOB_UNCOMPRESSED_SIZE,
    MAX_CHUNKS_PER_BLOB,
    round_up,
)
from lamina.errors import FormatError

SLOT_MASK = (1 << LAYER_SHIFT) - 1


@dataclass(slots=True)
class LayerPlan:
    """The new chunks of a layer in storage order, which is their numbering in the blob.

    ``references`` has one ``layer << 32 | slot`` for each chunk of each file; slots count the new
    chunks of a layer in archive order.  ``encoded`` maps a slot to its EROFS chunk index without
    the device (RAFS v6 §1.11), ``fresh`` to its number in the archive, and ``first_known`` is the
    place of slot 0 among all known chunks.  ``slots`` maps a chunk number to its slot, and
    ``addresses`` to its place in the blob's uncompressed space.  ``piece_counts`` is the number of
    chunks a piece.
    """

    layer: int
    first_known: int = 0
    references: array[int] = field(default_factory=lambda: array("Q"))
    fresh: array[int] = field(default_factory=lambda: array("I"))
    encoded: array[int] = field(default_factory=lambda: array("Q"))
    slots: array[int] = field(default_factory=lambda: array("I"))
    chunk_sizes: array[int] = field(default_factory=lambda: array("I"))
    addresses: array[int] = field(default_factory=lambda: array("Q"))
    piece_counts: array[int] = field(default_factory=lambda: array("I"))
    uncompressed_size: int = 0
    new_bytes: int = 0
    chunk_count: int = 0
    """Number of chunks in the layer's own blob, once it is planned."""

    @property
    def chunks(self) -> array[int]:
        """Return the number in the archive of each chunk of the blob."""
        fresh = self.fresh
        return array("I", map(fresh.__getitem__, self.slots))

    def take_tree_part(self) -> LayerPlan:
        """Return what the trees need of the plan, which is left without it."""
        part = LayerPlan(
            self.layer,
            references=self.references,
            encoded=self.encoded,
            uncompressed_size=self.uncompressed_size,
            chunk_count=self.chunk_count,
        )
        self.references, self.encoded, self.addresses = array("Q"), array("Q"), array("Q")
        self.fresh, self.slots = array("I"), array("I")
        return part

    @property
    def lower_layers(self) -> list[int]:
        """Return the lower layers that this one takes chunks from."""
        found = {reference >> LAYER_SHIFT for reference in self.references}
        return sorted(found - {self.layer})


class Fate(Enum):
    """What becomes of a chunk: nothing, for it is known; a piece of its own; part of a pack."""

    KNOWN = 0
    ALONE = 1
    PACKED = 2


# Looked up once: members of an enumeration are slow to get at, and there is one for each file.
_KNOWN, _ALONE, _PACKED = Fate.KNOWN, Fate.ALONE, Fate.PACKED


class LayerPlanner:
    """Plans one layer while its chunks come; lower layers were planned with the same ``known``.

    ``on_pack`` is called when a pack is full, before the chunk that has no room in it is planned.
    Small chunks are packed up to ``pack_size`` bytes.
    """

    def __init__(
        self,
        layer: int,
        known: KnownChunks,
        chunk_size: int,
        pack_size: int,
        on_pack: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = LayerPlan(layer, len(known))
        self._known = known
        self._chunk_size = chunk_size
        self._pack_size = pack_size
        self._on_pack = on_pack
        self._own = layer << LAYER_SHIFT
        self._pack: list[tuple[int, int]] = []
        self._pack_bytes = 0

    def add(self, digest: bytes, size: int) -> Fate:
        """Plan the next chunk of ``size`` bytes."""
        plan, own = self.plan, self._own
        reference = self._known.find_or_add(digest, own)
        plan.references.append(reference)
        if reference != own:
            return _KNOWN
        self._own = own + 1
        slot = own & SLOT_MASK
        plan.fresh.append(len(plan.references) - 1)
        plan.encoded.append(0)
        plan.new_bytes += size
        if size == self._chunk_size or size > self._pack_size:
            self._store(slot, size)
            plan.piece_counts.append(1)
            return _ALONE
        if self._pack_bytes + size > self._pack_size:
            self._close_pack()
        self._pack.append((slot, size))
        self._pack_bytes += size
        return _PACKED

    def finish(self) -> LayerPlan:
        """Close the last pack and return the plan.

        Raises FormatError if the layer does not fit in one blob.
        """
        if self._pack:
            self._close_pack()
        plan = self.plan
        count = plan.chunk_count = len(plan.slots)
        if count >= MAX_CHUNKS_PER_BLOB or plan.uncompressed_size > MAX_BLOB_UNCOMPRESSED_SIZE:
            raise FormatError(
                f"the layer has {count} chunks, which do not fit in one blob",
                hint="choose a larger chunk size",
            )
        return plan

    def _close_pack(self) -> None:
        self._on_pack()
        for slot, size in self._pack:
            self._store(slot, size)
        self.plan.piece_counts.append(len(self._pack))
        self._pack.clear()
        self._pack_bytes = 0

    def _store(self, slot: int, size: int) -> None:
        plan = self.plan
        index, address = len(plan.slots), plan.uncompressed_size
        plan.slots.append(slot)
        plan.chunk_sizes.append(size)
        plan.addresses.append(address)
        plan.uncompressed_size = address + round_up(size, BLOCK_SIZE)
        plan.encoded[slot] = (
            index & 0xFFFF | (index >> 16 & 0xFF) << 24 | (address >> 12 & 0xFFFFFFFF) << 32
        )


def plan_layer(layer: int, scan: LayerScan, known: KnownChunks, pack_size: int) -> LayerPlan:
    """Plan the blob of a layer that was scanned; lower layers were planned with the same ``known``.

    Raises FormatError if the layer does not fit in one blob.
    """
    planner = LayerPlanner(layer, known, scan.chunk_size, pack_size)
    digests = memoryview(scan.digests)
    for start, size in zip(range(0, len(digests), DIGEST_SIZE), scan.chunk_sizes, strict=True):
        planner.add(bytes(digests[start : start + DIGEST_SIZE]), size)
    return planner.finish()


def encode_references(
    references: array[int], plans: Mapping[int, LayerPlan], blob_indexes: Mapping[int, int]
) -> bytes:
    """Return the 8-byte EROFS chunk indexes of references, the layers' blobs being numbered by
    ``blob_indexes``.
    """
    devices = {layer: (index + 1) << 16 for layer, index in blob_indexes.items()}
    tables = {layer: plan.encoded for layer, plan in plans.items()}
    words = array(
        "Q",
        (
            tables[reference >> LAYER_SHIFT][reference & SLOT_MASK]
            | devices[reference >> LAYER_SHIFT]
            for reference in references
        ),
    )
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
