"""Small native images made in memory, with nothing but the writers of the format."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import struct
import tarfile
from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lamina.blob.builder import BlobColumns, encode_chunk_entries
from lamina.blob.framing import BlobOptions, BlobTail
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import Digester, digest
from lamina.content.blob_set import BlobSet
from lamina.content.lazy_image import LazyImage, Origin
from lamina.erofs.layout import BlobEntry, ChunkIndex, round_up
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, write_bootstrap
from lamina.oci.manifest import (
    NYDUS_BLOB,
    NYDUS_BLOB_MARK,
    NYDUS_BOOTSTRAP_MARK,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    describe,
    encode,
)
from lamina.oci.reference import parse_reference
from lamina.opening.bootstrap_file import mapped_bootstrap
from lamina.opening.metadata_layer import chunk_sets
from lamina.registry.open_repository import open_repository
from lamina.source.blob_source import BlobSource
from lamina.store.node import NodeStore
from lamina.store.records import MetadataFiles
from tests.support.asked_once import asked_once
from tests.support.range_source import RangeSource


class BuiltBlob(NamedTuple):
    """A blob, its chunk table, and (offset, stored size) of each piece."""

    blob_id: str
    data: bytes
    meta: bytes
    pieces: list[tuple[int, int]]


@dataclass
class BuiltImage:
    """An image, of one blob as a rule: ``others`` are those behind the first."""

    bootstrap: bytes
    blob_id: str
    blob: bytes
    meta: bytes
    contents: dict[bytes, bytes]
    pieces: list[tuple[int, int]] = field(default_factory=list)
    """(offset, stored size) of each piece in the first blob."""
    others: list[BuiltBlob] = field(default_factory=list)

    @property
    def blobs(self) -> list[BuiltBlob]:
        """All of them, in the order of the bootstrap; none if no file has content."""
        first = BuiltBlob(self.blob_id, self.blob, self.meta, self.pieces)
        return [first, *self.others] if self.meta else []


class MemorySource(RangeSource):
    """Blobs in memory; records every request."""

    name = "memory"

    def __init__(self, *images: BuiltImage) -> None:
        self.blobs = {blob.blob_id: blob.data for image in images for blob in image.blobs}
        self.requests: list[tuple[int, int]] = []

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        self.requests.append((offset, size_bytes))
        return self.blobs[blob_id][offset : offset + size_bytes]


@dataclass
class _Chunk:
    data: bytes
    owner: Node
    number: int


def build_image(
    files: dict[bytes, bytes],
    *,
    nodes: dict[bytes, Node] | None = None,
    chunk_size: int = 4096,
    pack_size: int = 0,
    compressor: Compressor = Compressor.ZSTD,
    digester: Digester = Digester.BLAKE3,
    blob_count: int = 1,
    root: Node | None = None,
) -> BuiltImage:
    """Build an image of *files* (path without a leading slash -> content) and other *nodes* below
    *root*.

    Files shorter than half of *pack_size* are packed together, the rest is cut into chunks.  Chunks
    and packs go to the blobs in turn, so that a file is in several.
    """
    root = root or Node(stat.S_IFDIR | 0o755, children={})
    chunks: list[_Chunk] = []
    for path, content in files.items():
        node = Node(stat.S_IFREG | 0o644, size=len(content), mtime=1_700_000_000)
        _place(root, path, node)
        parts = range(0, len(content), chunk_size)
        chunks += [
            _Chunk(content[start : start + chunk_size], node, number)
            for number, start in enumerate(parts)
        ]
    for path, node in (nodes or {}).items():
        _place(root, path, node)
    packed = [chunk for chunk in chunks if len(chunk.data) < pack_size // 2]
    plain = [chunk for chunk in chunks if len(chunk.data) >= pack_size // 2]
    groups = [[chunk] for chunk in plain] + _packs(packed, pack_size)
    options = BlobOptions(chunk_size, compressor, digester)
    shares = [groups[number::blob_count] for number in range(blob_count)]
    return _assemble(root, shares, options, files)


def _packs(chunks: list[_Chunk], pack_size: int) -> list[list[_Chunk]]:
    packs: list[list[_Chunk]] = []
    filled = pack_size
    for chunk in chunks:
        if filled + len(chunk.data) > pack_size:
            packs.append([])
            filled = 0
        packs[-1].append(chunk)
        filled += len(chunk.data)
    return packs


def _place(root: Node, path: bytes, node: Node) -> None:
    *parents, name = path.split(b"/")
    here = root
    for parent in parents:
        assert here.children is not None
        parent_node = here.children.setdefault(parent, Node(stat.S_IFDIR | 0o755, children={}))
        assert isinstance(parent_node, Node)
        here = parent_node
    assert here.children is not None
    here.children[name] = node


def _assemble(
    root: Node, shares: list[list[list[_Chunk]]], options: BlobOptions, files: dict[bytes, bytes]
) -> BuiltImage:
    arrays: dict[int, tuple[Node, dict[int, bytes]]] = {}
    made = [_make_blob(number, groups, options, arrays) for number, groups in enumerate(shares)]
    for node, indexes in arrays.values():
        node.chunks = b"".join(indexes[number] for number in sorted(indexes))
    entries = [entry for _, entry, _ in made if entry is not None]
    table = b"".join(rows for _, entry, rows in made if entry is not None)
    own = BootstrapOptions(options.chunk_size, Compressor.ZSTD, options.digester)
    bootstrap = write_bootstrap(root, entries, table, own)
    first, *others = [blob for blob, _, _ in made]
    return BuiltImage(
        bytes(bootstrap), first.blob_id, first.data, first.meta, files, first.pieces, others
    )


def _make_blob(
    number: int,
    groups: list[list[_Chunk]],
    options: BlobOptions,
    arrays: dict[int, tuple[Node, dict[int, bytes]]],
) -> tuple[BuiltBlob, BlobEntry | None, bytes]:
    """A blob, its entry and the rows of its chunks in the bootstrap; places go to *arrays*."""
    columns = BlobColumns(array("Q"), array("I"), array("Q"))
    data = bytearray()
    digests = bytearray()
    pieces: list[tuple[int, int]] = []
    address = 0
    for group in groups:
        raw = b"".join(chunk.data for chunk in group)
        stored = compress(options.compressor, raw) if options.compressor else raw
        if len(stored) >= len(raw):
            stored = raw
        pieces.append((len(data), len(stored)))
        data += stored
        columns.piece_counts.append(len(group))
        columns.piece_sizes.append(len(stored))
        for chunk in group:
            index = ChunkIndex(number, len(columns.chunk_sizes), address >> 12)
            arrays.setdefault(id(chunk.owner), (chunk.owner, {}))[1][chunk.number] = index.pack()
            columns.chunk_sizes.append(len(chunk.data))
            digests += digest(options.digester, chunk.data)
            address += round_up(len(chunk.data), 4096)
    finished = BlobTail(columns, hashlib.sha256(data), options, bytes(digests)).finish(b"\0" * 4096)
    rows = bytes(encode_chunk_entries(columns, bytes(digests), number))
    blob = BuiltBlob(finished.blob_id, bytes(data) + finished.tail, finished.meta, pieces)
    return blob, finished.entry, rows


def push_image(
    image: BuiltImage, layout: Path, *, tag: str = "latest", with_meta: bool = True
) -> Descriptor:
    """Put an image into an OCI layout folder; returns the descriptor of its manifest."""
    config = encode({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]}})
    layer = metadata_layer(image, with_meta=with_meta)
    blobs = image.blobs
    blob_layers = [describe(NYDUS_BLOB, blob.data, {NYDUS_BLOB_MARK: "true"}) for blob in blobs]
    boot_layer = describe(OCI_LAYER_GZIP, layer, {NYDUS_BOOTSTRAP_MARK: "true"})
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=describe(OCI_CONFIG, config),
        layers=(*blob_layers, boot_layer),
    )
    reference = parse_reference(f"oci:{layout}:{tag}")
    with open_repository(reference, write=True) as repository:
        parts = [(manifest.config, config), (boot_layer, layer)]
        parts += [(layer, blob.data) for layer, blob in zip(blob_layers, blobs, strict=True)]
        for descriptor, data in parts:
            repository.push_blob(descriptor, io.BytesIO(data))
        return repository.push_manifest(tag, OCI_MANIFEST, encode(manifest))


def metadata_layer(
    image: BuiltImage, *, with_meta: bool = True, name: str = "image/image.boot"
) -> bytes:
    """The metadata layer of an image, gzipped."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        members = {name: image.bootstrap}
        for blob in image.blobs if with_meta else ():
            members[f"image/{blob.blob_id}.blob.meta"] = blob.meta
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def some_bytes(size: int, seed: int) -> bytes:
    """Bytes that compress a little and differ from one seed to another."""
    unit = struct.pack("<Q", seed) + hashlib.sha256(str(seed).encode()).digest()
    return (unit * (size // len(unit) + 1))[:size]


def image_files(folder: str | os.PathLike[str], image: BuiltImage) -> Path:
    """Write an image as ``nydus-image create -B -D`` does: returns the bootstrap's path."""
    base = Path(folder)
    (base / "blobs").mkdir(parents=True)
    # An image without content has no blob that anybody reads, but a file of that name.
    for blob in image.blobs or [BuiltBlob(image.blob_id, image.blob, b"", [])]:
        (base / "blobs" / blob.blob_id).write_bytes(blob.data)
    (base / "image.boot").write_bytes(image.bootstrap)
    return base / "image.boot"


def open_bootstrap(
    bootstrap: str | os.PathLike[str],
    source: BlobSource,
    *,
    store: NodeStore | str | os.PathLike[str] | None = None,
) -> LazyImage:
    """Open what :func:`image_files` writes, with the blobs in *source*."""
    path = Path(bootstrap)
    node = store if isinstance(store, NodeStore) else NodeStore(Path(store) if store else None)
    with ExitStack() as stack:
        opened = stack.enter_context(mapped_bootstrap(path))
        files = MetadataFiles("", {}, chunk_sets(opened))
        blobs = BlobSet(opened, files, asked_once(source), node)
        stack.callback(blobs.close)
        return LazyImage(opened, blobs, origin=Origin(path), resources=stack.pop_all())
