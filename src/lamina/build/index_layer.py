"""Index one layer: read it once, and note its files, its chunks and its access points."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from lamina.archive.access_points import AccessPoint, PointMap
from lamina.archive.erofs_layer import ErofsTar, is_erofs_layer
from lamina.archive.gzip_points import GzipPoints
from lamina.archive.stream import DEFAULT_MAX_BYTES, GZIP_MAGIC, check_media_type
from lamina.archive.zstd_frames import MAGIC, is_skippable
from lamina.archive.zstd_points import ZstdPoints
from lamina.blob.split_table import pack_window
from lamina.build.diff_ids import checked_tar
from lamina.build.options import work_folder
from lamina.build.scan import LayerScan, TarStream, scan_layer
from lamina.build.toc_annotations import rounds_times
from lamina.codec.digest import Digester

if TYPE_CHECKING:
    from lamina.build.budget import Share
    from lamina.oci.manifest import Descriptor
    from lamina.registry.repository import Repository

READ_BYTES = 1 << 20


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


class _PlainPoints:
    """A tar that is not compressed: every byte is a point."""

    compression = "none"

    def __init__(self, read_input: Callable[[], bytes]) -> None:
        self.map = PointMap()
        self._read_input = read_input

    def read(self, _size: int = READ_BYTES, /) -> bytes:
        return self._read_input()

    def close(self) -> None:
        """Nothing stays open."""


def index_layer(
    repository: Repository,
    descriptor: Descriptor,
    chunk_size: int,
    spacing_bytes: int,
    digester: Digester,
    progress: Callable[[int], None] = lambda _: None,
    budget: Share | None = None,
    diff_id: str | None = None,
) -> IndexedLayer:
    """Read a layer to its end, its digest verified, and its ``diff_id`` if one is given;
    ``progress`` is told the bytes of each read.  What is kept of its entries is counted in
    ``budget``.

    Raises FormatError and UnsupportedError for a layer that cannot be read, and what reading it
    from the repository raises.
    """
    is_erofs = is_erofs_layer(descriptor.media_type)
    if not is_erofs:
        check_media_type(descriptor.media_type)
    with repository.open_blob(descriptor) as raw:
        head = _read_head(raw)
        progress(len(head))

        def read_input() -> bytes:
            nonlocal head
            if head:
                first, head = head, b""
                return first
            data = raw.read(READ_BYTES)
            progress(len(data))
            return data

        with closing(_points(head, read_input, spacing_bytes)) as stream:
            tar = checked_tar(stream, descriptor, diff_id)
            if is_erofs:
                scan = _scan_erofs(tar, chunk_size, digester, budget)
            else:
                scan = scan_layer(tar, None, chunk_size, digester, budget)
            while read_input():
                pass
            found = stream.map
    if rounds_times(descriptor):
        scan.round_times()
    return IndexedLayer(scan, found.ins, found.outs, found.points, descriptor.size)


def _scan_erofs(
    stored: TarStream, chunk_size: int, digester: Digester, budget: Share | None
) -> LayerScan:
    """Scan an EROFS file system; chunks have their places in it, not in an archive of it."""
    with closing(ErofsTar(stored, work_folder(None), DEFAULT_MAX_BYTES)) as archive:
        scan = scan_layer(archive, None, chunk_size, digester, budget)
        chunks = zip(scan.chunk_offsets, scan.chunk_sizes, strict=True)
        scan.chunk_offsets = array("Q", [archive.place_in_layer(*chunk) for chunk in chunks])
        scan.tar_bytes = archive.size_bytes
    return scan


def _read_head(raw: BinaryIO) -> bytes:
    head = raw.read(READ_BYTES)
    while 0 < len(head) < 4 and (more := raw.read(READ_BYTES)):
        head += more
    return head


def _points(
    head: bytes, read_input: Callable[[], bytes], spacing_bytes: int
) -> GzipPoints | ZstdPoints | _PlainPoints:
    if head[:2] == GZIP_MAGIC:
        return GzipPoints(read_input, spacing_bytes, pack_window)
    if head[:4] == MAGIC or (len(head) >= 4 and is_skippable(head[:4])):
        return ZstdPoints(read_input)
    return _PlainPoints(read_input)
