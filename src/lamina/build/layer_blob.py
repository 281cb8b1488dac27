"""The blob of one layer, from its first piece to pushed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lamina.blob.builder import BlobColumns, encode_chunk_entries
from lamina.blob.framing import BlobOptions, BlobTail, FinishedBlob
from lamina.build.blob_output import blob_output
from lamina.build.bootstrap import chunk_table_offset, fill_in
from lamina.build.options import ConvertOptions
from lamina.build.package import blob_descriptor, sealed_descriptor
from lamina.build.sealing import BlobSeal, SealedPart, SegmentSeal, describe_sealed, finish_sealed
from lamina.erofs.layout import CHUNK_ENTRY, BlobEntry
from lamina.oci.manifest import Descriptor
from lamina.posix.heap import give_freed_memory_back
from lamina.registry.repository import Repository

if TYPE_CHECKING:
    from lamina.build.byte_queue import ByteGate
    from lamina.build.layer_pieces import LayerPieces
    from lamina.build.plan import LayerPlan
    from lamina.build.tree_process import OwnLayout


MANY_CHUNKS = 1 << 17


class PlannedLayer(NamedTuple):
    """What is known of a layer when all of it was read: the plan and digests of its chunks, and its
    own bootstrap on the way.
    """

    plan: LayerPlan
    digests: bytearray
    own: Future[OwnLayout]


@dataclass(slots=True)
class LayerBuild:
    """One layer on its way.  ``entries`` are its chunk entries."""

    number: int
    source: Descriptor
    pieces: LayerPieces
    planned: Future[PlannedLayer] | None = field(default_factory=Future)
    entries: bytearray = field(default_factory=bytearray)
    blob: FinishedBlob | None = None
    chunk_count: int = 0
    piece_count: int = 0
    seal: BlobSeal | None = None
    sealed: SealedPart | None = None

    @property
    def descriptor(self) -> Descriptor:
        """Return the descriptor of the finished blob."""
        assert self.blob is not None
        if self.sealed is not None:
            return sealed_descriptor(self.blob.blob_id, self.sealed.description)
        return blob_descriptor(self.blob.blob_id, self.blob.size)


class _Pieces:
    """The pieces of a blob as they are written: lengths, digest, and proofs of sealed ones."""

    def __init__(self, seal: BlobSeal | None) -> None:
        self.sha256 = hashlib.sha256()
        self.sizes, self.stored_sizes = array("I"), array("I")
        self.seal = None if seal is None else SegmentSeal(seal.pieces(), 0)

    def add(self, stored: Sequence[bytes], plain_sizes: Sequence[int]) -> bytes:
        """Take some more, and return what is to be written."""
        self.sizes.extend(map(len, stored))
        if self.seal is not None:
            stored = list(map(self.seal.seal, stored, plain_sizes))
        self.stored_sizes.extend(map(len, stored))
        data = b"".join(stored)
        self.sha256.update(data)
        return data


def finish_and_push(
    layer: LayerBuild,
    lower: Sequence[Future[LayerBuild]],
    options: ConvertOptions,
    destination: Repository,
    gate: ByteGate,
    progress: Callable[[int, int, int], None],
) -> LayerBuild:
    """Write the pieces of a layer as they come, make the rest of its blob, and push it.

    ``lower`` are the lower layers on their way, which are waited for if chunks were borrowed from
    them.  Each piece leaves the ``gate`` when it is written.  ``progress`` is told plain bytes that
    were packed, bytes that the blob has got, and bytes of it that were pushed.
    """
    try:
        with closing(
            blob_output(destination, options, lambda size: progress(0, 0, size))
        ) as output:
            pieces = _Pieces(layer.seal)
            while (batch := layer.pieces.batches.get()) is not None:
                packed = batch.future.result()
                data = pieces.add(packed.stored, packed.plain_sizes)
                output.write(data)
                progress(batch.size_bytes, len(data), 0)
                gate.leave(batch.size_bytes)
            _finish(layer, pieces, lower, options)
            assert layer.blob is not None
            if layer.seal is None or layer.chunk_count:
                for part in layer.blob.tail_parts:
                    output.write(part)
                    progress(0, len(part), 0)
                output.commit(layer.descriptor)
            layer.blob = layer.blob._replace(tail_parts=())
    except BaseException as error:
        gate.close(error)
        raise
    return layer


def _finish(
    layer: LayerBuild,
    pieces: _Pieces,
    lower: Sequence[Future[LayerBuild]],
    options: ConvertOptions,
) -> None:
    assert layer.planned is not None
    plan, digests, own = layer.planned.result()
    # Kept here alone, it goes when the blob is done.
    layer.planned = None
    columns = BlobColumns(plan.chunk_sizes, plan.piece_counts, pieces.sizes)
    layer.chunk_count, layer.piece_count = plan.chunk_count, len(plan.piece_counts)
    blob_options = BlobOptions(options.chunk_size, options.compressor, options.digester)
    layer.entries = encode_chunk_entries(columns, digests, 0)
    del digests
    if layer.seal is None:
        tail = BlobTail(columns, pieces.sha256, blob_options)
        if layer.chunk_count >= MANY_CHUNKS:
            # Before the bootstrap comes, all that the pieces took goes.
            give_freed_memory_back()
        bootstrap = _own_bootstrap(layer, own.result(), lower, tail)
        layer.blob = tail.finish(bootstrap)
        layer.entries = _cut_entries(bootstrap, layer.chunk_count)
    else:
        assert pieces.seal is not None
        proof = bytes(pieces.seal.leaves), bytes(pieces.seal.messages)
        layer.sealed = describe_sealed(layer.seal, pieces.stored_sizes, *proof)
        size = sum(pieces.stored_sizes)
        layer.blob = finish_sealed(columns, pieces.sha256, size, blob_options)


def _own_bootstrap(
    layer: LayerBuild, own: OwnLayout, lower: Sequence[Future[LayerBuild]], tail: BlobTail
) -> bytearray:
    """Return the image of the layer alone, filled in; its entries are there and nowhere else."""
    blobs: list[BlobEntry] = []
    tables: list[bytes | bytearray] = []
    for number in own.layers:
        if number == layer.number:
            assert tail.entry is not None
            blobs.append(tail.entry)
            tables.append(layer.entries)
            layer.entries = bytearray()
        else:
            other = lower[number].result()
            assert other.blob is not None
            assert other.blob.entry is not None
            blobs.append(other.blob.entry)
            tables.append(_chosen_entries(other.entries, own.borrowed[number]))
    tables.reverse()
    # A table that was appended is not kept.
    return fill_in(own.bootstrap.take(), blobs, (tables.pop() for _ in range(len(tables))))


def _cut_entries(bootstrap: bytearray, chunk_count: int) -> bytearray:
    """Return the entries of the layer's own chunks, the first in the table of its bootstrap, which
    is used up.
    """
    start, size = chunk_table_offset(bootstrap), CHUNK_ENTRY.size * chunk_count
    # Both are large, so they are not in memory at a time.
    with memoryview(bootstrap) as view:
        view[:size] = view[start : start + size]
    del bootstrap[size:]
    return bootstrap


def _chosen_entries(entries: bytearray, chunks: Sequence[int]) -> bytes:
    size = CHUNK_ENTRY.size
    return b"".join([entries[chunk * size : (chunk + 1) * size] for chunk in chunks])
