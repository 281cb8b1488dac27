"""Put an image together: its layers one after the other, and what follows when all were read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from lamina.archive.blocks import Block
from lamina.build.bootstrap import fill_in
from lamina.build.byte_queue import ByteGate, CancelledError
from lamina.build.image_build import Job, Phases
from lamina.build.known_chunks import KnownChunks
from lamina.build.layer_blob import LayerBuild, PlannedLayer, finish_and_push
from lamina.build.layer_pieces import LayerPieces, Machinery
from lamina.build.options import ConvertProgress, LayerReport
from lamina.build.read_ahead import layer_tars
from lamina.build.read_processes import ReaderProcesses
from lamina.build.scan import TarStream, stream_layer
from lamina.build.sealing import SealedPart
from lamina.build.toc_annotations import rounds_times
from lamina.build.tree_process import LOG, MergedLayout, TreeProcess
from lamina.oci.manifest import Descriptor

T = TypeVar("T")

PROGRESS_INTERVAL_S = 0.2
MANY_ENTRIES = 1 << 17
"""With more of them, the bootstrap of a layer and that of the image are not in memory at a time."""


@dataclass(slots=True)
class BuiltImage:
    """The finished parts of a native image: layers as pushed, the merged bootstrap, and (blob id,
    blob.meta).
    """

    layers: list[LayerReport] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=list)
    bootstrap: bytearray = field(default_factory=bytearray)
    metas: list[tuple[str, bytes]] = field(default_factory=list)
    sealed: list[SealedPart] = field(default_factory=list)
    """One a blob if the image is sealed."""


class Assembly:
    """One image on its way; make it, call :meth:`run` once."""

    def __init__(
        self,
        job: Job,
        trees: TreeProcess,
        readers: ReaderProcesses | None,
        packers: ThreadPoolExecutor,
        finishers: ThreadPoolExecutor,
        gate: ByteGate,
        phases: Phases,
    ) -> None:
        self._job = job
        self._trees = trees
        self._readers = readers
        self._finishers = finishers
        self._gate = gate
        self._phases = phases
        self._machinery = Machinery(KnownChunks(), packers, gate, trees.add_entries)
        self._layers: list[LayerBuild] = []
        self._finished: list[Future[LayerBuild]] = []
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._read_bytes = self._packed_bytes = self._stored_bytes = self._pushed_bytes = 0
        self._told_s = time.monotonic()

    def run(self) -> BuiltImage:
        """Read all layers; return when their blobs are pushed."""
        try:
            with self._phases("read layers"), self._tars() as tars:
                for number, tar in enumerate(tars):
                    self._read_layer(number, tar)
            self._machinery = self._machinery._replace(known=KnownChunks())
            if sum(layer.pieces.entry_count for layer in self._layers) > MANY_ENTRIES:
                self._wait_for_blobs()
            return self._conclude(self._trees.finish())
        except BaseException as error:
            self._cancel(error)
            raise

    @contextmanager
    def _tars(self) -> Iterator[Iterable[TarStream]]:
        job = self._job
        if self._readers is not None:
            yield self._readers.tars(len(job.layers), self._count_read)
            return
        # fmt: off
        with layer_tars(job.source, job.layers, job.diff_ids, job.options.max_layer_bytes,
                        job.threads, self._count_read, job.options.work_dir) as tars:
            yield tars
        # fmt: on

    def _read_layer(self, number: int, tar: TarStream) -> None:
        job, options = self._job, self._job.options
        source = job.layers[number]
        budget = job.budget.share(number)
        pieces = LayerPieces(number, self._machinery, options, budget)
        layer = LayerBuild(number, source, pieces, seal=job.seals[number] if job.seals else None)
        self._layers.append(layer)
        self._finished.append(self._finishers.submit(self._finish, layer))
        # fmt: off
        stream_layer(_ToldTar(tar, self._tell), options.chunk_size, options.digester,
                     budget, pieces, round_times=rounds_times(source))
        # fmt: on
        plan = pieces.finish()
        digests = self._machinery.known.digests(plan.first_known, plan.slots)
        own = self._trees.end_layer(plan.take_tree_part())
        assert layer.planned is not None
        layer.planned.set_result(PlannedLayer(plan, digests, own))

    def _finish(self, layer: LayerBuild) -> LayerBuild:
        return finish_and_push(
            layer,
            self._finished,
            self._job.options,
            self._job.destination,
            self._gate,
            self._count_written,
        )

    def _cancel(self, error: BaseException) -> None:
        """Wake all threads that wait for something."""
        self._is_cancelled = True
        self._gate.close(error)
        for layer in self._layers:
            layer.pieces.batches.put(None)
            if layer.planned is not None and not layer.planned.done():
                layer.planned.set_exception(CancelledError("the conversion was cancelled"))

    def _conclude(self, laid_out: Future[MergedLayout]) -> BuiltImage:
        layers = self._wait_for_blobs()
        built = BuiltImage()
        for layer in layers:
            built.layers.append(_report(layer))
            if layer.sealed is None:
                built.descriptors.append(layer.descriptor)
            elif layer.chunk_count:
                built.descriptors.append(layer.descriptor)
                built.sealed.append(layer.sealed)
        with self._phases("wait for bootstrap"):
            merged = self._wait(laid_out)
        for path in merged.missing:
            shown = path.decode(errors="backslashreplace")
            LOG.warning("the image has no %s to prefetch; links are not followed", shown)
        with self._phases("fill in bootstrap"):
            blobs = [layers[number].blob for number in merged.layers]
            entries = [blob.entry for blob in blobs if blob and blob.entry]
            tables = (layers[number].entries for number in merged.layers)
            built.bootstrap = fill_in(merged.bootstrap.take(), entries, tables)
            built.metas = [(blob.blob_id, blob.meta) for blob in blobs if blob]
        return built

    def _wait_for_blobs(self) -> list[LayerBuild]:
        with self._phases("wait for blobs"):
            return [self._wait(future) for future in self._finished]

    def _wait(self, future: Future[T]) -> T:
        while True:
            try:
                result = future.result(PROGRESS_INTERVAL_S)
            except FutureTimeoutError:
                if future.done():
                    raise
                self._tell()
            else:
                self._tell(at_once=True)
                return result

    def _tell(self, *, at_once: bool = False) -> None:
        """Tell the progress, not more often than the interval unless ``at_once``."""
        report, now_s = self._job.options.progress, time.monotonic()
        if report is not None and (at_once or now_s - self._told_s >= PROGRESS_INTERVAL_S):
            self._told_s = now_s
            total = sum(layer.size for layer in self._job.layers)
            new_bytes = sum(layer.pieces.new_bytes for layer in self._layers)
            report(
                ConvertProgress(
                    self._read_bytes,
                    total,
                    self._packed_bytes,
                    new_bytes,
                    self._pushed_bytes,
                    self._stored_bytes,
                )
            )

    def _count_read(self, size_bytes: int) -> None:
        with self._lock:
            self._read_bytes += size_bytes

    def _count_written(self, packed_bytes: int, stored_bytes: int, pushed_bytes: int) -> None:
        if self._is_cancelled:
            raise CancelledError("the conversion was cancelled")
        with self._lock:
            self._packed_bytes += packed_bytes
            self._stored_bytes += stored_bytes
            self._pushed_bytes += pushed_bytes


class _ToldTar:
    """A stream that lets progress be told between its blocks."""

    def __init__(self, tar: TarStream, tell: Callable[[], None]) -> None:
        self._tar = tar
        self._tell = tell

    @property
    def compression(self) -> str:
        """Tell how the stream is compressed."""
        return self._tar.compression

    def read(self, size: int, /) -> Block:
        """Return the next bytes, b"" at the end."""
        self._tell()
        return self._tar.read(size)


def _report(layer: LayerBuild) -> LayerReport:
    pieces = layer.pieces
    return LayerReport(
        source_digest=layer.source.digest,
        source_bytes=layer.source.size,
        blob_digest=layer.descriptor.digest,
        blob_bytes=layer.descriptor.size,
        entries=pieces.entry_count,
        plain_bytes=pieces.plain_bytes,
        new_bytes=pieces.new_bytes,
        chunks=layer.chunk_count,
        pieces=layer.piece_count,
    )
