"""Index layers by the tables of contents that they bring along, without reading the layers.

Such a table is used only where the manifest of the image pins it by digest, it has a SHA-256 for
every part of every file, and the parts can be chunks of one RAFS image.  An image is indexed so as
a whole or not at all.  Sources: see :mod:`lamina.archive.estargz` and
:mod:`lamina.archive.zstd_chunked`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.archive import estargz, zstd_chunked
from lamina.archive.access_points import FOLLOWING_BYTES, AccessPoint, PointMap
from lamina.archive.layer_toc import LayerToc, TocChunk, TocFile, TocMember
from lamina.archive.stream import check_media_type
from lamina.blob.layout import MAX_ZRAN_INPUT, MAX_ZRAN_OUTPUT
from lamina.build.budget import MAX_CHUNKS, Budget, Share, attributes_bytes, text_bytes
from lamina.build.index_layer import IndexedLayer
from lamina.build.options import DEFAULT_CHUNK_SIZE, MIN_CHUNK_SIZE
from lamina.build.scan import LayerScan, entry_row
from lamina.build.toc_annotations import pinned_table, rounds_times
from lamina.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    from lamina.archive.tar import Entry
    from lamina.oci.manifest import Descriptor
    from lamina.registry.repository import Repository

MAX_CHUNK_SIZE: Final = 4 << 20
"""Largest chunk, which is what eStargz has by default.  With larger ones a small read costs more
than what an index spares.
"""


class TocLayers(NamedTuple):
    """The layers of an image, as they would be found by reading them, digested with SHA-256."""

    chunk_size: int
    layers: list[IndexedLayer]


def have_tables(layers: Iterable[Descriptor]) -> bool:
    """Tell whether the manifest says of some layer that it has a table of contents."""
    return any(pinned_table(layer) for layer in layers)


def layers_by_table(repository: Repository, layers: Sequence[Descriptor]) -> TocLayers:
    """Fetch the tables of an image's layers and return what they say.

    Raises UnsupportedError, FormatError or IntegrityError if they are not enough to index the image
    by, and what the repository raises.
    """
    for layer in layers:
        check_media_type(layer.media_type)
        if not pinned_table(layer):
            raise UnsupportedError(f"the layer {layer.digest} has no table of contents")
    tables = []
    with closing(Budget()) as budget:
        share = budget.share()
        for layer in layers:
            tables.append(_fetch(repository, layer))
            _count(tables[-1], share)
    chunk_size = common_chunk_size(file for table in tables for file in table.files)
    found = [
        indexed_by_table(table, chunk_size, layer.size)
        for table, layer in zip(tables, layers, strict=True)
    ]
    for layer, known in zip(layers, found, strict=True):
        if rounds_times(layer):
            known.scan.round_times()
    return TocLayers(chunk_size, found)


def _count(table: LayerToc, budget: Share) -> None:
    """Count what a table says; raises UnsupportedError if that and what was counted is too much."""
    for entry, chunks in table.files:
        size = text_bytes(entry.path, entry.link)
        if entry.xattrs:
            size += attributes_bytes(entry.xattrs)
        budget.add(1 + len(chunks), size)
    budget.flush()


def _fetch(repository: Repository, layer: Descriptor) -> LayerToc:
    pinned = pinned_table(layer)
    assert pinned is not None
    if pinned.position:
        place = zstd_chunked.toc_place(pinned.position, layer.size)
        stored = repository.read_range(layer.digest, *place[:2])
        return zstd_chunked.parse_toc(stored, *place[::2], pinned.checksum, pinned.json_digest)
    footer_offset = layer.size - estargz.FOOTER_BYTES
    if footer_offset <= 0:
        raise FormatError("the layer is too short for an eStargz footer")
    footer = repository.read_range(layer.digest, footer_offset, estargz.FOOTER_BYTES)
    if zstd_chunked.is_footer(footer):
        place = zstd_chunked.footer_place(footer, layer.size)
        stored = repository.read_range(layer.digest, *place[:2])
        return zstd_chunked.parse_toc(stored, *place[::2], "", pinned.json_digest)
    offset, size = estargz.toc_place(footer, layer.size)
    stored = repository.read_range(layer.digest, offset, size)
    toc = estargz.parse_toc(stored, offset, pinned.json_digest)
    _check_members(repository, layer, toc)
    return toc


def _check_members(repository: Repository, layer: Descriptor, toc: LayerToc) -> None:
    """Look at one member for all: what follows its header must be found without reading it."""
    first = next((chunk for file in toc.files for chunk in file.chunks), None)
    if first is None:
        return
    head = b""
    if first.offset < toc.end:
        head = repository.read_range(layer.digest, first.offset, len(estargz.MEMBER_MAGIC))
    if head != estargz.MEMBER_MAGIC:
        raise UnsupportedError("the files of the layer do not begin with plain gzip headers")


def common_chunk_size(files: Iterable[TocFile]) -> int:
    """Return the chunk size of an image with these files; raises UnsupportedError without one."""
    largest = 1
    even: set[int] = set()
    for _, chunks in files:
        largest = max([largest, *(chunk.size for chunk in chunks)])
        even.update(chunk.size for chunk in chunks[:-1])
    size = max(even) if even else max(1 << (largest - 1).bit_length(), DEFAULT_CHUNK_SIZE)
    if len(even) > 1 or size < largest or size & (size - 1) or size < MIN_CHUNK_SIZE:
        raise UnsupportedError("files are cut unevenly")
    if size > MAX_CHUNK_SIZE:
        raise UnsupportedError(f"a part of a file has {largest} bytes, which is too much")
    return size


def indexed_by_table(table: LayerToc, chunk_size: int, layer_bytes: int) -> IndexedLayer:
    """Return what a table says of a layer of ``layer_bytes``, with chunks of a size from
    :func:`common_chunk_size`.

    Raises UnsupportedError or FormatError if it does not make sense.
    """
    stream = _Stream(table.compression, chunk_size, layer_bytes)
    for file in table.files:
        stream.add(file)
    own = table.itself
    if own is not None:
        stream.add(TocFile(own.entry, list(_own_chunks(own, chunk_size))))
    return stream.finish(table.end if own is None else layer_bytes)


def _own_chunks(own: TocMember, chunk_size: int) -> Iterator[TocChunk]:
    for start in range(0, len(own.data), chunk_size):
        part = own.data[start : start + chunk_size]
        digest = hashlib.sha256(part).digest()
        yield TocChunk(own.offset, own.inner_offset + start, len(part), digest)


class _Stream:
    """What a table says, as if the layer had been read: a stream of the members that have data."""

    def __init__(self, compression: str, chunk_size: int, layer_bytes: int) -> None:
        self._scan = LayerScan(chunk_size, compression=compression)
        self._header_bytes = estargz.MEMBER_HEADER_BYTES if compression == "gzip" else 0
        self._layer_bytes = layer_bytes
        self._entries: list[Entry] = []
        self._digests: list[bytes] = []
        self._map = PointMap()
        self._member = -1
        self._begin = self._end = 0

    def add(self, file: TocFile) -> None:
        """Add an entry of the tar stream; raises UnsupportedError, FormatError."""
        entry = file.entry
        if entry.xattrs:
            self._scan.xattrs[len(self._entries)] = entry.xattrs
        self._entries.append(entry)
        self._scan.numbers.extend(entry_row(entry))
        for chunk in file.chunks:
            if chunk.offset != self._member:
                self._open(chunk.offset)
            end = chunk.inner_offset + chunk.size
            if end > MAX_ZRAN_OUTPUT:
                raise UnsupportedError("parts of files begin far inside of what they lie in")
            self._scan.chunk_offsets.append(self._begin + chunk.inner_offset)
            self._scan.chunk_sizes.append(chunk.size)
            self._digests.append(chunk.sha256)
            self._end = max(self._end, self._begin + end)

    def _open(self, offset: int) -> None:
        if not self._member < offset < self._layer_bytes:
            raise FormatError("the parts of files are not in the order of the table of contents")
        if self._map.points:
            self._close(offset)
        self._member, self._begin = offset, self._end
        in_offset = offset + self._header_bytes
        self._map.add(in_offset, self._begin)
        self._map.points.append(AccessPoint(in_offset, self._begin))

    def _close(self, end: int) -> None:
        """End the member that was begun last."""
        if end - self._member + FOLLOWING_BYTES + self._header_bytes > MAX_ZRAN_INPUT:
            raise UnsupportedError("parts of files lie far apart")

    def finish(self, end: int) -> IndexedLayer:
        """Return the layer, whose data ends at ``end``."""
        if len(self._digests) >= MAX_CHUNKS:
            raise UnsupportedError("a layer has too many parts of files")
        if self._map.points:
            self._close(end)
        self._map.add(end, self._end)
        scan, found = self._scan, self._map
        scan.paths = b"\0".join([entry.path for entry in self._entries])
        scan.links = b"\0".join([entry.link for entry in self._entries])
        scan.digests = b"".join(self._digests)
        return IndexedLayer(scan, found.ins, found.outs, found.points, self._layer_bytes)
