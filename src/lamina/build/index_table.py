"""The chunk table of an indexed layer: records, contexts and windows (RAFS v6 §2.4-2.6, §7)."""

from __future__ import annotations

import hashlib
import sys
from array import array
from bisect import bisect_right
from typing import NamedTuple

from lamina.archive.access_points import AccessPoint
from lamina.blob.builder import entries_of_columns
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
from lamina.blob.split_table import encode_split, pack_window
from lamina.build.index_layer import IndexedLayer
from lamina.build.plan import LayerPlan
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.layout import CHUNK_FLAG_COMPRESSED, BlobEntry, BlobFeature

_FEATURES = (
    BlobFeature.ALIGNED | BlobFeature.CHUNK_INFO_V2 | BlobFeature.SEPARATE | BlobFeature.CAP_TAR_TOC
)

END = 1 << 64


class IndexBlob(NamedTuple):
    """What is pushed for a layer (``data``), its entry in the blob table, and its chunk entries.

    Opening needs the first ``head_size`` bytes of ``data``; 0: all of it.
    """

    data: bytes
    entry: BlobEntry
    chunk_entries: bytearray
    head_size: int


class _Places(NamedTuple):
    """Where the stored bytes around each chunk begin, and how many they are."""

    starts: array[int]
    sizes: array[int]


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
    offsets = array("Q", map(layer.scan.chunk_offsets.__getitem__, plan.chunks))
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
    extra_size = len(packed) + sum(size for _, size in windows)
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
    used: list[AccessPoint] = []
    ends = array("Q")
    owners = array("I")
    # What the last point holds; most chunks are read from the point of the one before.
    begin = limit = owner = -1
    for offset, size in zip(offsets, plan.chunk_sizes, strict=True):
        if not begin <= offset < limit:
            number = bisect_right(starts, offset) - 1
            begin = starts[number]
            limit = starts[number + 1] if number + 1 < len(starts) else END
            used.append(points[number])
            ends.append(0)
            owner += 1
        owners.append(owner)
        if offset + size > ends[owner]:
            ends[owner] = offset + size
    boundaries = layer.map
    found = []
    for point, out_end in zip(used, ends, strict=True):
        in_size = boundaries.in_after(out_end, layer.size) - point.in_offset
        found.append(_Context(point, in_size, out_end - point.out_offset))
    return found, owners


def _places(
    layer: IndexedLayer, plan: LayerPlan, offsets: array[int], *, compressed: bool
) -> _Places:
    if not compressed:
        return _Places(offsets, plan.chunk_sizes)
    starts, ends = layer.map.spans(offsets, plan.chunk_sizes, layer.size)
    sizes = (min(end - start, MAX_STORED_SIZE_V2) for start, end in zip(starts, ends, strict=True))
    return _Places(starts, array("I", sizes))


def _records(
    plan: LayerPlan,
    offsets: array[int],
    places: _Places,
    contexts: list[_Context],
    owners: array[int],
) -> bytes:
    words = array("Q", bytes(3 * 8 * len(offsets)))
    flags = CHUNK_COMPRESSED | CHUNK_ZRAN if contexts else 0
    rows = zip(plan.addresses, plan.chunk_sizes, strict=True)
    words[0::3] = array("Q", (pack_v2(*row, 0, 0, flags)[0] for row in rows))
    places_of = zip(places.starts, places.sizes, strict=True)
    words[1::3] = array("Q", (start | size << 40 for start, size in places_of))
    if contexts:
        starts = [context.point.out_offset for context in contexts]
        owned = zip(owners, offsets, strict=True)
        words[2::3] = array("Q", (owner << 32 | at - starts[owner] for owner, at in owned))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def _encode_contexts(contexts: list[_Context]) -> tuple[bytes, list[tuple[bytes, int]]]:
    """Return the contexts and their packed windows, equal windows once."""
    known: dict[bytes, int] = {}
    windows: list[tuple[bytes, int]] = []
    total = 0
    records = []
    for point, in_size, out_size in contexts:
        point = point.with_packed(pack_window)
        frame, size = point.packed
        place = known.setdefault(frame, total)
        if size and place == total:
            windows.append(point.packed)
            total += size
        # fmt: off
        records.append(ZRAN_CONTEXT.pack(point.in_offset, point.out_offset, place, in_size,
                                         out_size, size, point.byte, point.bits))
        # fmt: on
    return b"".join(records), windows


def _chunk_entries(
    plan: LayerPlan, layer: IndexedLayer, places: _Places, *, compressed: bool
) -> bytearray:
    """Return the 80-byte entries of the chunks, of blob 0."""
    flags = CHUNK_FLAG_COMPRESSED << 32 if compressed else 0
    rows = zip(places.sizes, plan.chunk_sizes, strict=True)
    return entries_of_columns(
        layer.scan.digests_of(plan.chunks),
        array("Q", [flags]) * plan.chunk_count,
        array("Q", (stored | size << 32 for stored, size in rows)),
        array("Q", places.starts),
        array("Q", plan.addresses),
    )
