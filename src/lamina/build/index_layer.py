"""Index one layer: read it once, and note its files, its chunks and its access points."""

from __future__ import annotations

from array import array
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from lamina.archive.access_points import AccessPoint, PointMap
from lamina.archive.erofs_layer import ErofsTar, is_erofs_layer
from lamina.archive.stream import DEFAULT_MAX_BYTES
from lamina.build.diff_ids import checked_tar
from lamina.build.layer_reader import (
    MIN_OWN_PROCESS_BYTES,
    LayerSource,
    open_layer_beside,
    open_layer_here,
)
from lamina.build.options import work_folder
from lamina.build.scan import LayerScan, TarStream, scan_layer
from lamina.build.toc_annotations import rounds_times
from lamina.codec.digest import Digester

if TYPE_CHECKING:
    from lamina.build.budget import Share


class IndexedLayer(NamedTuple):
    """A layer that was read: what is in it, and where it can be entered.

    ``ins`` and ``outs`` are the boundaries that chunks end at; only the points that chunks are
    read from keep their windows.
    """

    scan: LayerScan
    ins: array[int]
    outs: array[int]
    points: list[AccessPoint]
    size: int

    @property
    def map(self) -> PointMap:
        """Return the boundaries and points."""
        return PointMap(self.ins, self.outs, self.points)


def index_layer(
    source: LayerSource,
    chunk_size: int,
    digester: Digester,
    budget: Share | None = None,
    diff_id: str | None = None,
    *,
    beside: bool = False,
) -> IndexedLayer:
    """Read a layer to its end, its digest verified, and its ``diff_id`` if one is given.  What is
    kept of its entries is counted in ``budget``.

    ``beside`` has a large layer inflated by a process of its own.

    Raises FormatError and UnsupportedError for a layer that cannot be read, and what reading it
    from the repository raises.
    """
    descriptor = source.descriptor
    is_large = descriptor.size >= MIN_OWN_PROCESS_BYTES
    open_layer = open_layer_beside if beside and is_large else open_layer_here
    with open_layer(source) as stream:
        tar = checked_tar(stream, descriptor, diff_id)
        if is_erofs_layer(descriptor.media_type):
            scan = _scan_erofs(tar, chunk_size, digester, budget)
        else:
            scan = scan_layer(tar, None, chunk_size, digester, budget)
        compression, found = stream.finish()
    scan.compression = compression
    if rounds_times(descriptor):
        scan.round_times()
    return IndexedLayer(scan, found.ins, found.outs, found.points, descriptor.size)


def _scan_erofs(
    stored: TarStream, chunk_size: int, digester: Digester, budget: Share | None
) -> LayerScan:
    """Scan an EROFS file system; chunks have their places in it, not in an archive of it."""
    with closing(ErofsTar(stored, work_folder(None), DEFAULT_MAX_BYTES, is_placed=True)) as archive:
        scan = scan_layer(archive, None, chunk_size, digester, budget)
        chunks = zip(scan.chunk_offsets, scan.chunk_sizes, strict=True)
        scan.chunk_offsets = array("Q", [archive.place_in_layer(*chunk) for chunk in chunks])
        scan.tar_bytes = archive.size_bytes
    return scan
