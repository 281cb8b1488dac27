"""Read and inflate a layer that is indexed, and note its access points: here, or in a process of
its own, beside the one that reads what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from lamina.archive.access_points import PointMap
from lamina.archive.erofs_layer import is_erofs_layer
from lamina.archive.gzip_points import GzipPoints, PruningThinner
from lamina.archive.stream import GZIP_MAGIC, check_media_type
from lamina.archive.zstd_frames import MAGIC, is_skippable
from lamina.archive.zstd_points import ZstdPoints
from lamina.blob.split_table import pack_window
from lamina.build.block_ring import BlockRing, BrokenStreamError
from lamina.build.window_process import WindowProcess, window_process
from lamina.build.workers import Workers
from lamina.posix.heap import keep_freed_memory

if TYPE_CHECKING:
    from lamina.archive.blocks import Block
    from lamina.oci.manifest import Descriptor
    from lamina.registry.repository import Repository

READ_BYTES = 1 << 20

MIN_OWN_PROCESS_BYTES = 2 << 20
"""Layers that are smaller are read by the process that needs them: it takes some milliseconds."""


class LayerSource(NamedTuple):
    """A layer to be read; ``progress`` is told the bytes of each read."""

    open_repository: Callable[[], Repository]
    descriptor: Descriptor
    spacing_bytes: int
    progress: Callable[[int], None]


class ReadPoints(NamedTuple):
    """How a layer is compressed, and where it can be entered."""

    compression: str
    map: PointMap


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


class Helpers(NamedTuple):
    """Where the blocks of a layer go, and who thins out its windows, if other processes do that."""

    ring: BlockRing
    windows: WindowProcess


class OpenLayer:
    """A layer that is read here."""

    def __init__(self, raw: BinaryIO, source: LayerSource, helpers: Helpers | None = None) -> None:
        """Work alone, or with ``helpers``."""
        self._raw = raw
        self._progress = source.progress
        self._head = _read_head(raw)
        self._progress(len(self._head))
        self._helpers = helpers
        self._points = self._open(source.spacing_bytes)

    @property
    def compression(self) -> str:
        """``none``, ``gzip`` or ``zstd``."""
        return self._points.compression

    def read(self, size: int = READ_BYTES, /) -> Block:
        """Return the next bytes of the tar, an empty block at the end."""
        return self._points.read(size)

    def finish(self) -> ReadPoints:
        """Read to the end of the layer, which verifies its digest; return its points."""
        while self._read_input():
            pass
        if self._helpers is not None:
            self._helpers.windows.finish(self._points.map.points)
        return ReadPoints(self.compression, self._points.map)

    def close(self) -> None:
        """Free what decompresses."""
        self._points.close()

    def pour(self, ring: BlockRing) -> None:
        """Pass on all of the tar, without its end."""
        is_there = isinstance(self._points, GzipPoints)
        while block := self.read():
            if is_there:
                ring.put(len(block))
            else:
                ring.copy_in(block)

    def _open(self, spacing_bytes: int) -> GzipPoints | ZstdPoints | _PlainPoints:
        head, helpers = self._head, self._helpers
        if head[:2] == GZIP_MAGIC:
            if helpers is None:
                return GzipPoints(self._read_input, spacing_bytes, PruningThinner(pack_window))
            windows, new_buffer = helpers.windows, helpers.ring.buffer
            return GzipPoints(self._read_input, spacing_bytes, windows, new_buffer)
        if head[:4] == MAGIC or (len(head) >= 4 and is_skippable(head[:4])):
            return ZstdPoints(self._read_input)
        return _PlainPoints(self._read_input)

    def _read_input(self) -> bytes:
        if self._head:
            first, self._head = self._head, b""
            return first
        data = self._raw.read(READ_BYTES)
        self._progress(len(data))
        return data


class PouredLayer:
    """A layer that another process reads."""

    compression = ""
    """Not known here."""

    def __init__(self, ring: BlockRing, workers: Workers) -> None:
        self._ring = ring
        self._future = workers.submit(_pour)
        workers.no_more()
        self._is_ended = False

    def read(self, _size: int = READ_BYTES, /) -> Block:
        """Return the next bytes of the tar, an empty block at the end.

        Raises what reading the layer raises.
        """
        if self._is_ended:
            return b""
        try:
            block = self._ring.get()
        except BrokenStreamError:
            # It says why, or that its process died.
            self._future.result()
            raise
        self._is_ended = not block
        return block

    def finish(self) -> ReadPoints:
        """Return the points of the layer; raises what reading it to its end raises."""
        return self._future.result()


@contextmanager
def open_layer_here(source: LayerSource, helpers: Helpers | None = None) -> Iterator[OpenLayer]:
    """Open a layer to read it in this process.

    Raises UnsupportedError for what is no layer, and what opening it raises.
    """
    if not is_erofs_layer(source.descriptor.media_type):
        check_media_type(source.descriptor.media_type)
    with (
        source.open_repository().open_blob(source.descriptor) as raw,
        closing(OpenLayer(raw, source, helpers)) as layer,
    ):
        yield layer


@contextmanager
def open_layer_beside(source: LayerSource) -> Iterator[PouredLayer]:
    """Open a layer to read it in a process of its own, which ends with the context.

    Call it without threads.  Raises what :func:`open_layer_here` does, where it is read.
    """
    with closing(BlockRing()) as ring, Workers(1, _set_up, (source, ring)) as workers:
        ring.become_reader()
        yield PouredLayer(ring, workers)


_source: LayerSource
_ring: BlockRing


def _set_up(state: tuple[LayerSource, BlockRing]) -> None:
    global _source, _ring
    _source, _ring = state
    _ring.become_writer()
    keep_freed_memory()


def _pour() -> ReadPoints:
    try:
        with (
            window_process() as windows,
            open_layer_here(_source, Helpers(_ring, windows)) as layer,
        ):
            layer.pour(_ring)
            points = layer.finish()
        _ring.put(0)
    except BaseException:
        _ring.fail()
        raise
    return points


def _read_head(raw: BinaryIO) -> bytes:
    head = raw.read(READ_BYTES)
    while 0 < len(head) < 4 and (more := raw.read(READ_BYTES)):
        head += more
    return head
