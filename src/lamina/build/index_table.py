"""The chunk table of an indexed layer: records, contexts and windows (RAFS v6 §2.4-2.6, §7)."""

from __future__ import annotations

import hashlib
import sys
from array import array
from bisect import bisect_right
from typing import NamedTuple

from lamina.archive.access_points import AccessPoint
from lamina.blob.ci_header import entry_of
from lamina.blob.layout import (
    CHUNK_COMPRESSED,
    CHUNK_ZRAN,
    MAX_STORED_SIZE_V2,
    MAX_ZRAN_INPUT,
    MAX_ZRAN_OUTPUT,
    ZRAN_CONTEXT,
    CiHeader,
    pack_v2,
)
from lamina.blob.split_table import encode_split
from lamina.build.index_layer import IndexedLayer
from lamina.build.plan import LayerPlan
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.layout import CHUNK_ENTRY, CHUNK_FLAG_COMPRESSED, BlobEntry, BlobFeature

_FEATURES = (
    BlobFeature.ALIGNED | BlobFeature.CHUNK_INFO_V2 | BlobFeature.SEPARATE | BlobFeature.CAP_TAR_TOC
)


class IndexBlob(NamedTuple):
    """What is pushed for a layer (``data``), its entry in the blob table, and its chunk entries.

    Opening needs the first ``head_size`` bytes of ``data``; 0: all of it.
    """

    data: bytes
    entry: BlobEntry
    chunk_entries: bytes
    head_size: int


class _Context(NamedTuple):
    point: AccessPoint
    in_size: int
    out_size: int

    @property
    def is_readable(self) -> bool:
        return self.out_size <= MAX_ZRAN_OUTPUT and self.in_size <= MAX_ZRAN_INPUT


def index_blob(
    layer_id: str, layer: IndexedLayer, plan: LayerPlan, chunk_size: int, digester: Digester
) -> IndexBlob:
    """Return the table of a layer with chunks; ``layer_id`` is the hex of its digest.

    A stream that can be entered at too few points becomes one that is read whole.
    """
    offsets = array("Q", [layer.scan.chunk_offsets[number] for number in plan.chunks])
    contexts: list[_Context] = []
    owners = array("I")
    if layer.scan.compression != "none":
        contexts, owners = _contexts(layer, plan, offsets)
        if not all(context.is_readable for context in contexts):
            contexts = []
    places = _places(layer, plan, offsets, compressed=bool(contexts))
    records = _records(plan, offsets, places, contexts, owners)
    packed, windows = _encode_contexts(contexts)
    encoded = encode_split(records + packed, windows, len(contexts))
    extra_size = len(packed) + sum(map(len, windows))
    header = CiHeader(
        features=_features(layer.scan.compression, has_contexts=bool(contexts)),
        compressor=Compressor.ZSTD,
        entries=plan.chunk_count,
        offset=0,
        compressed_size=len(encoded.stored),
        uncompressed_size=len(records) + extra_size,
        context_offset=len(records) if contexts else 0,
        context_size=extra_size,
        context_count=len(contexts),
    )
    data = encoded.stored + header.pack()
    entry = entry_of(
        header,
        blob_id=layer_id,
        chunk_size=chunk_size,
        compressor=Compressor.ZSTD if layer.scan.compression == "zstd" else Compressor.GZIP,
        digester=digester,
        compressed_size=layer.size,
        uncompressed_size=plan.uncompressed_size,
    )._replace(meta_digest=hashlib.sha256(data).digest(), meta_size=len(data))
    entries = _chunk_entries(plan, layer, places, compressed=bool(contexts))
    return IndexBlob(data, entry, entries, encoded.head_size)


def _features(compression: str, *, has_contexts: bool) -> int:
    if compression == "none":
        return int(_FEATURES)
    if not has_contexts:
        return int(_FEATURES | BlobFeature.WHOLE_STREAM)
    own = BlobFeature.ZSTD_FRAMES if compression == "zstd" else 0
    return int(_FEATURES | BlobFeature.ZRAN | own)


def _contexts(
    layer: IndexedLayer, plan: LayerPlan, offsets: array[int]
) -> tuple[list[_Context], array[int]]:
    """Return the contexts, and the one of each chunk: the last point before it.

    Points that no chunk is read from are left out.
    """
    points = layer.points
    starts = [point.out_offset for point in points]
    found: list[_Context] = []
    owners = array("I")
    boundaries = layer.map
    last = -1
    for offset, size in zip(offsets, plan.chunk_sizes, strict=True):
        number = bisect_right(starts, offset) - 1
        if number != last:
            last = number
            found.append(_Context(points[number], 0, 0))
        owners.append(len(found) - 1)
        point = points[number]
        out_size = max(found[-1].out_size, offset + size - point.out_offset)
        found[-1] = _Context(point, 0, out_size)
    whole = []
    for point, _, out_size in found:
        end = boundaries.in_after(point.out_offset + out_size, layer.size)
        whole.append(_Context(point, end - point.in_offset, out_size))
    return whole, owners


def _places(
    layer: IndexedLayer, plan: LayerPlan, offsets: array[int], *, compressed: bool
) -> list[tuple[int, int]]:
    """Return (offset, size) of the stored bytes around each chunk."""
    if not compressed:
        return list(zip(offsets, plan.chunk_sizes, strict=True))
    boundaries = layer.map
    places = []
    for offset, size in zip(offsets, plan.chunk_sizes, strict=True):
        start = boundaries.in_before(offset)
        end = boundaries.in_after(offset + size, layer.size)
        places.append((start, min(end - start, MAX_STORED_SIZE_V2)))
    return places


def _records(
    plan: LayerPlan,
    offsets: array[int],
    places: list[tuple[int, int]],
    contexts: list[_Context],
    owners: array[int],
) -> bytes:
    words: list[int] = []
    flags = CHUNK_COMPRESSED | CHUNK_ZRAN if contexts else 0
    rows = zip(plan.addresses, plan.chunk_sizes, places, offsets, strict=True)
    for number, (address, size, (start, stored_size), offset) in enumerate(rows):
        data = 0
        if contexts:
            owner = owners[number]
            data = owner << 32 | offset - contexts[owner].point.out_offset
        words += pack_v2(address, size, start, stored_size, flags, data)
    values = array("Q", words)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _encode_contexts(contexts: list[_Context]) -> tuple[bytes, list[bytes]]:
    """Return the contexts and their windows, equal windows once."""
    known: dict[bytes, int] = {}
    windows: list[bytes] = []
    total = 0
    records = []
    for point, in_size, out_size in contexts:
        window = point.window
        place = known.setdefault(window, total)
        if window and place == total:
            windows.append(window)
            total += len(window)
        # fmt: off
        records.append(ZRAN_CONTEXT.pack(point.in_offset, point.out_offset, place, in_size,
                                         out_size, len(window), point.byte, point.bits))
        # fmt: on
    return b"".join(records), windows


def _chunk_entries(
    plan: LayerPlan, layer: IndexedLayer, places: list[tuple[int, int]], *, compressed: bool
) -> bytes:
    """Return the 80-byte entries of the chunks, of blob 0."""
    digests = plan.digests(layer.scan)
    flags = CHUNK_FLAG_COMPRESSED if compressed else 0
    rows = zip(plan.chunk_sizes, plan.addresses, places, strict=True)
    # fmt: off
    return b"".join([
        CHUNK_ENTRY.pack(digests[32 * index : 32 * index + 32], 0, flags, stored_size, size, start,
                         address, 0, index, 0)
        for index, (size, address, (start, stored_size)) in enumerate(rows)
    ])
    # fmt: on
