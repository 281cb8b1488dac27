"""Put an image together while its layers are scanned and packed: plan, merge, lay out, finish."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import TypeVar

from lamina.build import tasks
from lamina.build.bootstrap import fill_in, lay_out, warn_of_missing
from lamina.build.image_build import Phases
from lamina.build.layer_blob import LayerBuild, OwnBlobs, borrowed_chunks, finish_and_push
from lamina.build.layer_tree import AppliedLayer, apply_layer, devices_of, renumber
from lamina.build.merge import MergedTree
from lamina.build.options import ConvertProgress, LayerReport
from lamina.build.plan import KnownChunks, LayerPlan, encode_references, plan_layer, segments
from lamina.build.scan import LayerScan
from lamina.build.sealing import SealedPart
from lamina.build.workers import Workers
from lamina.erofs.layout import MAX_BLOBS
from lamina.errors import Error, UnsupportedError
from lamina.registry.manifest import Descriptor
from lamina.registry.repository import Repository

T = TypeVar("T")

PROGRESS_INTERVAL_S = 0.2


@dataclass(slots=True)
class BuiltImage:
    """The finished parts of a native image: layers as pushed, the merged bootstrap, and (blob id,
    blob.meta).
    """

    layers: list[LayerReport] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=list)
    bootstrap: bytes = b""
    metas: list[tuple[str, bytes]] = field(default_factory=list)
    sealed: list[SealedPart] = field(default_factory=list)
    """One a blob if the image is sealed."""


class Assembly:
    """What becomes of the scans of one image; make it, call :meth:`run` once."""

    def __init__(
        self,
        job: tasks.Job,
        destination: Repository,
        workers: Workers,
        finishers: ThreadPoolExecutor,
        phases: Phases,
    ) -> None:
        self._job = job
        self._sources = job.layers
        self._options = job.options
        self._destination = destination
        self._workers = workers
        self._finishers = finishers
        self._phases = phases
        self._plans: list[LayerPlan] = []
        self._device_layers: list[int] = []
        self._tree = MergedTree(job.budget.share(len(job.layers)))
        self._finished: list[Future[LayerBuild]] = []
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._packed_bytes = self._pushed_bytes = 0

    def run(self, scans: Sequence[Future[tuple[LayerScan, float]]]) -> BuiltImage:
        """Take the scans of all layers in order; return when their blobs are pushed."""
        try:
            known = KnownChunks()
            for number, scanned in enumerate(scans):
                self._add_layer(number, scanned, known)
            self._workers.no_more()
            return self._conclude()
        except BaseException:
            self._cancelled.set()
            raise

    def _add_layer(
        self, number: int, scanned: Future[tuple[LayerScan, float]], known: KnownChunks
    ) -> None:
        with self._phases("wait for scan"):
            scan, cpu_s = self._wait(scanned)
        self._phases.add("scan (workers, CPU)", cpu_s)
        with self._phases("plan"):
            plan = plan_layer(number, scan, known, self._options.pack_size)
            files = self._job.files[number]
            layer = LayerBuild(number, self._sources[number], files, scan, plan)
            layer.seal = self._job.seals[number] if self._job.seals else None
            self._submit_segments(layer)
        self._apply(layer)
        self._finished.append(self._finishers.submit(self._finish, layer))

    def _submit_segments(self, layer: LayerBuild) -> None:
        self._plans.append(layer.plan)
        if layer.plan.chunk_count:
            self._device_layers.append(layer.number)
            if len(self._device_layers) > MAX_BLOBS:
                raise UnsupportedError(
                    f"The image has more than {MAX_BLOBS} layers with data.",
                    hint="Flatten some of its layers first.",
                )
        room_of = int if layer.seal is None else layer.seal.pieces().stored_size
        for segment in segments(layer.plan, layer.scan, room_of):
            future = self._workers.submit(tasks.pack, layer.number, segment)
            future.add_done_callback(self._counter_of(sum(segment.chunk_sizes)))
            layer.packed.append((segment, future))

    def _apply(self, layer: LayerBuild) -> None:
        """Apply a layer to the merged tree, and lay out its own bootstrap."""
        plan, references = layer.plan, layer.plan.references
        own = OwnBlobs(plan, self._device_layers)
        with self._phases("merge"):
            indexes = encode_references(references, self._plans, own.indexes)
            applied = apply_layer(self._tree, layer.scan, indexes, own.adopt)
        layer.own_layers = list(own.layers)
        layer.borrowed = sorted(borrowed_chunks(plan, self._plans) | own.borrowed)
        if layer.seal is not None:
            # Sealed blobs have nothing but pieces in them.
            self._renumber(applied, references, own)
            return
        with self._phases("lay out own bootstraps"):
            plans = [self._plans[number] for number in own.layers]
            count = plan.chunk_count + len(layer.borrowed)
            layer.own_bootstrap = lay_out(applied.own.root, plans, count, self._options)
        self._renumber(applied, references, own)

    def _renumber(self, applied: AppliedLayer, references: array[int], own: OwnBlobs) -> None:
        with self._phases("merge"):
            merged = {number: index for index, number in enumerate(self._device_layers)}
            if {**merged, **own.indexes} != merged:
                applied.set_indexes(encode_references(references, self._plans, merged))

    def _finish(self, layer: LayerBuild) -> LayerBuild:
        finished = finish_and_push(
            layer,
            self._finished,
            self._options,
            self._destination,
            lambda size: self._count(pushed=size),
        )
        # Nobody waits for that: it takes long for a large layer.
        self._finishers.submit(layer.files.drop_spool)
        return finished

    def _conclude(self) -> BuiltImage:
        used = self._used_layers()
        plans = [self._plans[number] for number in used]
        count = sum(plan.chunk_count for plan in plans)
        warn_of_missing(self._tree.root, self._options)
        with self._phases("lay out bootstrap"):
            bootstrap = lay_out(self._tree.root, plans, count, self._options)
        with self._phases("wait for blobs"):
            layers = [self._wait(future) for future in self._finished]
        built = BuiltImage()
        for layer in layers:
            self._phases.add("pack (workers, CPU)", layer.pack_cpu_s)
            built.layers.append(_report(layer))
            if layer.sealed is None:
                built.descriptors.append(layer.descriptor)
            elif layer.plan.chunk_count:
                built.descriptors.append(layer.descriptor)
                built.sealed.append(layer.sealed)
        with self._phases("fill in bootstrap"):
            blobs = [layers[number].blob for number in used]
            entries = [blob.entry for blob in blobs if blob and blob.entry]
            table = b"".join(layers[number].chunk_entries(i) for i, number in enumerate(used))
            built.bootstrap = fill_in(bootstrap, entries, table)
            built.metas = [(blob.blob_id, blob.meta) for blob in blobs if blob]
        return built

    def _used_layers(self) -> list[int]:
        """Return the layers that the merged tree takes data from, renumbering its blobs if some are
        not used.
        """
        found: set[int] = set()
        for _, node in self._tree.root.walk():
            found.update(devices_of(node.chunks))
        if len(found) != len(self._device_layers):
            devices = {device: index for index, device in enumerate(sorted(found), 1)}
            files = {id(node): node for _, node in self._tree.root.walk() if node.chunks}
            for node in files.values():
                node.chunks = renumber(node.chunks, devices)
        return [self._device_layers[device - 1] for device in sorted(found)]

    def _wait(self, future: Future[T]) -> T:
        report = self._options.progress
        if report is None:
            return future.result()
        while True:
            try:
                result = future.result(PROGRESS_INTERVAL_S)
            except FutureTimeoutError:
                if future.done():
                    raise
                report(self._progress())
            else:
                report(self._progress())
                return result

    def _progress(self) -> ConvertProgress:
        total = sum(layer.size for layer in self._sources)
        new_bytes = sum(plan.new_bytes for plan in self._plans)
        read = self._job.read_bytes.total()
        return ConvertProgress(read, total, self._packed_bytes, new_bytes, self._pushed_bytes)

    def _counter_of(self, plain_bytes: int) -> Callable[[object], None]:
        return lambda _: self._count(packed=plain_bytes)

    def _count(self, packed: int = 0, pushed: int = 0) -> None:
        if pushed and self._cancelled.is_set():
            raise Error("The conversion was cancelled.")
        with self._lock:
            self._packed_bytes += packed
            self._pushed_bytes += pushed


def _report(layer: LayerBuild) -> LayerReport:
    plan, scan = layer.plan, layer.scan
    return LayerReport(
        source_digest=layer.source.digest,
        source_bytes=layer.source.size,
        blob_digest=layer.descriptor.digest,
        blob_bytes=layer.descriptor.size,
        entries=scan.entry_count,
        plain_bytes=sum(scan.chunk_sizes),
        new_bytes=plan.new_bytes,
        chunks=plan.chunk_count,
        pieces=len(plan.piece_counts),
    )
