"""The blob of one layer, from planned to pushed."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast, runtime_checkable

from lamina.blob.builder import BlobColumns, encode_chunk_entries
from lamina.blob.framing import BlobOptions, BlobTail, FinishedBlob
from lamina.build.bootstrap import fill_in
from lamina.build.layer_tree import devices_of, renumber
from lamina.build.options import ConvertOptions
from lamina.build.pack import Segment
from lamina.build.package import blob_descriptor, sealed_descriptor
from lamina.build.plan import LAYER_SHIFT, SLOT_MASK, LayerPlan
from lamina.build.regions import RegionFile
from lamina.build.scan import LayerScan
from lamina.build.sealing import BlobSeal, SealedPart, describe_sealed, finish_sealed
from lamina.build.tasks import LayerFiles, Packed
from lamina.erofs.layout import CHUNK_ENTRY, BlobEntry
from lamina.erofs.tree import Node
from lamina.registry.manifest import Descriptor
from lamina.registry.repository import Repository

if TYPE_CHECKING:
    from typing_extensions import Buffer

COPY_BYTES = 1 << 20
WORDS_PER_ENTRY = CHUNK_ENTRY.size // 4
BLOB_INDEX_WORD = 8


class OwnBlobs:
    """The numbering of blobs in a layer's own bootstrap: its own first, then those of lower layers
    as needed.
    """

    def __init__(self, plan: LayerPlan, device_layers: Sequence[int]) -> None:
        """``device_layers`` are the layers behind the devices of the merged tree, from 1 on."""
        self._layers = [plan.layer] if plan.chunk_count else []
        self._layers += plan.lower_layers
        self._device_layers = device_layers
        self.borrowed: set[tuple[int, int]] = set()
        """(layer, chunk number) of chunks of lower blobs that hard links to lower files bring in.
        """

    @property
    def layers(self) -> Sequence[int]:
        """The layers whose blobs are referred to, in the order of the blob table."""
        return self._layers

    @property
    def indexes(self) -> dict[int, int]:
        """Layer -> blob index."""
        return {layer: index for index, layer in enumerate(self._layers)}

    def adopt(self, node: Node) -> Node:
        """Return a node of a lower layer as the layer's own tree has it."""
        if not node.chunks:
            return node
        devices = {}
        for device in sorted(set(devices_of(node.chunks))):
            layer = self._device_layers[device - 1]
            if layer not in self._layers:
                self._layers.append(layer)
            devices[device] = self._layers.index(layer) + 1
        for start in range(0, len(node.chunks), 8):
            index = node.chunks[start : start + 8]
            number = index[0] | index[1] << 8 | index[3] << 16
            self.borrowed.add((self._device_layers[index[2] - 1], number))
        # fmt: off
        return Node(node.mode, node.uid, node.gid, node.mtime, node.mtime_ns, node.size, node.rdev,
                    node.target, renumber(node.chunks, devices), node.xattrs)
        # fmt: on


@dataclass(slots=True)
class LayerBuild:
    """One layer on its way.  ``own_bootstrap`` is laid out but not filled in; ``entries`` are its
    chunk entries.

    ``borrowed`` are the (layer, chunk number) of chunks of lower blobs that the own bootstrap
    refers to.
    """

    number: int
    source: Descriptor
    files: LayerFiles
    scan: LayerScan
    plan: LayerPlan
    packed: list[tuple[Segment, Future[Packed]]] = field(default_factory=list)
    own_bootstrap: bytes = b""
    own_layers: Sequence[int] = ()
    borrowed: list[tuple[int, int]] = field(default_factory=list)
    regions: list[tuple[int, int]] = field(default_factory=list)
    entries: bytes = b""
    blob: FinishedBlob | None = None
    pack_cpu_s: float = 0.0
    seal: BlobSeal | None = None
    sealed: SealedPart | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the finished blob."""
        assert self.blob is not None
        if self.sealed is not None:
            return sealed_descriptor(self.blob.blob_id, self.sealed.description)
        return blob_descriptor(self.blob.blob_id, self.blob.size)

    def chunk_entries(self, blob_index: int) -> bytes:
        """Return the entries of all chunks of the finished blob, under another blob index."""
        return with_blob_index(self.entries, blob_index)

    def open(self) -> RegionFile:
        """Return the finished blob as a file."""
        assert self.blob is not None
        return RegionFile(self.files.packed.fileno(), self.regions, self.blob.tail)


def borrowed_chunks(plan: LayerPlan, plans: Sequence[LayerPlan]) -> set[tuple[int, int]]:
    """Return the (layer, chunk number) of the chunks that a layer shares with lower ones."""
    found = set()
    for reference in plan.references:
        layer = reference >> LAYER_SHIFT
        if layer != plan.layer:
            word = plans[layer].encoded[reference & SLOT_MASK]
            found.add((layer, word & 0xFFFF | (word >> 24 & 0xFF) << 16))
    return found


class BlobWriter(Protocol):
    """Takes a blob while it is being made; :meth:`commit` gives it its name."""

    def write(self, data: Buffer) -> None:
        """Append bytes."""

    def commit(self, descriptor: Descriptor) -> None:
        """Store what was written under its digest."""

    def close(self) -> None:
        """Drop what was not committed."""


@runtime_checkable
class DirectRepository(Protocol):
    """A repository that can take a blob before its digest is known."""

    def start_blob(self) -> BlobWriter:
        """Begin a blob."""


def finish_and_push(
    layer: LayerBuild,
    lower: Sequence[Future[LayerBuild]],
    options: ConvertOptions,
    destination: Repository,
    progress: Callable[[int], None],
) -> LayerBuild:
    """Take the packed segments as they come, make the rest of the blob, and push it.

    ``lower`` are the lower layers on their way, which are waited for if chunks were borrowed from
    them.
    """
    if layer.seal is not None and not layer.plan.chunk_count:
        _finish(layer, lower, options, lambda _: None)
    elif isinstance(destination, DirectRepository):
        with closing(destination.start_blob()) as writer:
            _finish(layer, lower, options, lambda data: _write(writer, data, progress))
            _commit(layer, writer, destination, progress)
    else:
        _finish(layer, lower, options, lambda _: None)
        _push(layer, destination, progress)
    return layer


def _write(writer: BlobWriter, data: Buffer, progress: Callable[[int], None]) -> None:
    writer.write(data)
    progress(len(memoryview(data)))


def _commit(
    layer: LayerBuild,
    writer: BlobWriter,
    destination: Repository,
    progress: Callable[[int], None],
) -> None:
    """Add what follows the pieces, and keep the blob unless it is there."""
    assert layer.blob is not None
    _write(writer, layer.blob.tail, progress)
    if not destination.has_blob(layer.descriptor.digest, layer.descriptor.size):
        writer.commit(layer.descriptor)


def _finish(
    layer: LayerBuild,
    lower: Sequence[Future[LayerBuild]],
    options: ConvertOptions,
    write: Callable[[Buffer], None],
) -> None:
    sha256 = hashlib.sha256()
    piece_sizes, stored_sizes = array("I"), array("I")
    leaves: list[bytes] = []
    messages: list[bytes] = []
    buffer = memoryview(bytearray(COPY_BYTES))
    for segment, future in layer.packed:
        packed = future.result()
        layer.pack_cpu_s += packed.cpu_s
        piece_sizes.extend(packed.sizes)
        stored_sizes.extend(packed.stored_sizes)
        leaves.append(packed.leaves)
        messages.append(packed.messages)
        layer.regions.append((segment.packed_offset, sum(packed.stored_sizes)))
        with RegionFile(layer.files.packed.fileno(), layer.regions[-1:], b"") as region:
            while size := region.readinto(buffer):
                sha256.update(buffer[:size])
                write(buffer[:size])
    plan = layer.plan
    columns = BlobColumns(plan.chunk_sizes, plan.piece_counts, piece_sizes)
    blob_options = BlobOptions(options.chunk_size, options.compressor, options.digester)
    layer.entries = encode_chunk_entries(columns, plan.digests(layer.scan), 0)
    if layer.seal is None:
        tail = BlobTail(columns, sha256, blob_options)
        layer.blob = tail.finish(_own_bootstrap(layer, lower, tail))
        layer.own_bootstrap = b""
    else:
        proof = b"".join(leaves), b"".join(messages)
        layer.sealed = describe_sealed(layer.seal, stored_sizes, *proof)
        layer.blob = finish_sealed(columns, sha256, sum(stored_sizes), blob_options)


def _own_bootstrap(layer: LayerBuild, lower: Sequence[Future[LayerBuild]], tail: BlobTail) -> bytes:
    """The image of the layer alone, filled in."""
    blobs: list[BlobEntry] = []
    tables: list[bytes] = []
    for index, number in enumerate(layer.own_layers):
        if number == layer.number:
            assert tail.entry is not None
            blobs.append(tail.entry)
            tables.append(layer.chunk_entries(index))
        else:
            other = lower[number].result()
            assert other.blob is not None
            assert other.blob.entry is not None
            blobs.append(other.blob.entry)
            wanted = [chunk for owner, chunk in layer.borrowed if owner == number]
            tables.append(_chosen_entries(other.chunk_entries(index), wanted))
    return fill_in(layer.own_bootstrap, blobs, b"".join(tables))


def _push(layer: LayerBuild, destination: Repository, progress: Callable[[int], None]) -> None:
    """Push a finished blob, unless it is there."""
    descriptor = layer.descriptor
    if destination.has_blob(descriptor.digest, descriptor.size):
        progress(descriptor.size)
        return
    with layer.open() as source:
        destination.push_blob(descriptor, cast("BinaryIO", source), progress)


def with_blob_index(entries: bytes, blob_index: int) -> bytes:
    """Return 80-byte chunk entries with another blob index (RAFS v6 §1.9)."""
    words = array("I", entries)
    value = (
        blob_index
        if sys.byteorder == "little"
        else int.from_bytes(blob_index.to_bytes(4, "little"), "big")
    )
    words[BLOB_INDEX_WORD::WORDS_PER_ENTRY] = array("I", [value]) * (len(words) // WORDS_PER_ENTRY)
    return words.tobytes()


def _chosen_entries(entries: bytes, chunks: Sequence[int]) -> bytes:
    size = CHUNK_ENTRY.size
    return b"".join([entries[chunk * size : (chunk + 1) * size] for chunk in chunks])
