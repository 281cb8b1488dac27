"""From the layers of an ordinary image to its index: tables of the layers, and the merged tree.

Every layer is read once, by a process of its own, while this one merges what is finished.  The
processes start before the modules for that are loaded.
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from lamina.archive.gzip_points import DEFAULT_SPACING_BYTES
from lamina.build.budget import Budget
from lamina.build.image_build import no_garbage_collection
from lamina.build.index_layer import IndexedLayer, index_layer
from lamina.build.index_table import IndexBlob, index_blob
from lamina.build.known_chunks import KnownChunks
from lamina.build.layer_reader import LayerSource
from lamina.build.layer_tocs import have_tables, layers_by_table
from lamina.build.options import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, check_jobs
from lamina.build.plan import LayerPlan, plan_layer
from lamina.build.scan import LayerScan
from lamina.build.shared_counters import SharedCounters
from lamina.build.workers import Workers
from lamina.codec.digest import Digester
from lamina.errors import FormatError, IntegrityError, UnsupportedError, UsageError
from lamina.http.client_options import ClientOptions
from lamina.oci.manifest import Descriptor
from lamina.posix.heap import keep_freed_memory
from lamina.posix.processors import processor_count
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from lamina.source.blob_source import RangesIgnoredError

if TYPE_CHECKING:
    from lamina.build.index_merge import BuiltIndex

DEFAULT_CHUNK_SIZE = 128 << 10
PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How an image is indexed.

    ``chunk_size`` is the unit of verification, ``spacing_bytes`` the least distance of two access
    points in a gzip layer, in compressed bytes: what is fetched at least for a small file.
    ``by_table`` lets tables of contents that the layers bring along be used instead of reading
    them; chunk size and digester are then theirs.  ``platforms`` are those wanted of a
    multi-platform image (none: all).  ``layer_trees`` asks for the tree of each layer too.
    ``progress`` is told how many more bytes of the layers were read, and ``sized`` before that how
    many they are.
    """

    chunk_size: int = DEFAULT_CHUNK_SIZE
    spacing_bytes: int = DEFAULT_SPACING_BYTES
    digester: Digester = Digester.BLAKE3
    by_table: bool = True
    jobs: int = 0
    platforms: Sequence[str] = ()
    layer_trees: bool = False
    progress: Callable[[int], None] | None = None
    sized: Callable[[int], None] | None = None

    def check(self) -> None:
        """Raise UsageError for values that make no sense."""
        size = self.chunk_size
        # A chunk that is stored as it is must fit in 24 bits (RAFS v6 §2.4).
        if size & (size - 1) or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE // 2:
            raise UsageError(f"the chunk size {size} is no power of two from 4 KiB to 8 MiB")
        if self.spacing_bytes < 1:
            raise UsageError(f"access points cannot be {self.spacing_bytes} bytes apart")
        check_jobs(self.jobs)


@dataclass(slots=True)
class _Job:
    repository: Repository
    client: ClientOptions | None
    layers: Sequence[Descriptor]
    options: IndexOptions
    known: Sequence[IndexedLayer]
    diff_ids: Sequence[str]
    beside: bool = False
    """Whether processors are left for inflating large layers beside what is in them."""
    read_bytes: SharedCounters = field(init=False)
    budget: Budget = field(init=False)
    shown_bytes: int = 0
    opened_by: int = 0

    def __post_init__(self) -> None:
        self.read_bytes = SharedCounters(len(self.layers))
        self.budget = Budget(len(self.layers) + 1)

    def tell(self) -> None:
        """Pass on how far the workers are."""
        if self.options.progress is not None:
            total = self.read_bytes.total()
            self.options.progress(total - self.shown_bytes)
            self.shown_bytes = total

    def close(self) -> None:
        """Give the counters back."""
        self.budget.close()
        self.read_bytes.close()


_job: _Job


def _set_up(job: _Job) -> None:
    global _job  # noqa: PLW0603 - a worker has one job
    _job = job
    keep_freed_memory()


def _open_repository() -> Repository:
    """Return what this process reads layers from: it cannot have a connection of another one."""
    if _job.repository.reference.transport == "docker" and _job.opened_by != os.getpid():
        _job.repository = open_repository(_job.repository.reference, options=_job.client)
        _job.opened_by = os.getpid()
    return _job.repository


class LayerIndex(NamedTuple):
    """What a worker makes of a layer; ``blob`` is None if it has no data."""

    scan: LayerScan
    plan: LayerPlan
    blob: IndexBlob | None


def _index(number: int) -> LayerIndex:
    """Index a layer.  Windows are large, so they stay here and only the finished table is sent."""
    options, descriptor = _job.options, _job.layers[number]
    if _job.known:
        layer = _job.known[number]
    else:

        def count(size_bytes: int) -> None:
            _job.read_bytes.add(number, size_bytes)

        diff_id = _job.diff_ids[number] if _job.diff_ids else None
        layer = index_layer(
            LayerSource(_open_repository, descriptor, options.spacing_bytes, count),
            options.chunk_size,
            options.digester,
            _job.budget.share(number),
            diff_id,
            beside=_job.beside,
        )
    # Chunks that a lower layer has as well are not looked for: nothing is stored twice by that, and
    # the layers need not wait for each other.
    plan = plan_layer(number, layer.scan, KnownChunks(), 0)
    blob = None
    if plan.chunk_count:
        blob = index_blob(descriptor.hex, layer, plan, options.chunk_size, options.digester)
    # What a blob was made of is not needed any more.
    scan = layer.scan
    scan.digests, scan.chunk_sizes, scan.chunk_offsets = b"", array("I"), array("Q")
    return LayerIndex(scan, plan.take_tree_part(), blob)


def build_from_layers(
    repository: Repository,
    layers: Sequence[Descriptor],
    options: IndexOptions,
    client: ClientOptions | None = None,
    diff_ids: Sequence[str] = (),
) -> BuiltIndex:
    """Return the index of an image, by its layers' tables of contents or else by reading them.

    Call it before threads are started.  ``client`` is what the repository was opened with.  Raises
    what reading the layers raises, and IntegrityError if one that is read does not have the diff_id
    that ``diff_ids`` says, if they are given.
    """
    for layer in layers:
        if not layer.digest.startswith("sha256:"):
            raise UnsupportedError(
                f"the layer {layer.digest[:80]} is not named by SHA-256, as blobs of an index are",
                hint="convert the image: lamina convert",
            )
    known: Sequence[IndexedLayer] = ()
    problem = ""
    if options.by_table and have_tables(layers):
        try:
            chunk_size, known = layers_by_table(repository, layers)
            options = replace(options, chunk_size=chunk_size, digester=Digester.SHA256)
        except (FormatError, IntegrityError, UnsupportedError, RangesIgnoredError) as error:
            problem = str(error)
    processors = options.jobs or processor_count()
    beside = processors > 1
    with closing(_Job(repository, client, layers, options, known, diff_ids, beside)) as job:
        jobs = min(processors, len(layers))
        with no_garbage_collection(), Workers(jobs, _set_up, job) as workers:
            futures = deque(workers.submit(_index, number) for number in range(len(layers)))
            workers.no_more()
            # Loaded this late, it does not keep the workers from starting.
            from lamina.build.index_merge import IndexMerge

            share = job.budget.share(len(layers))
            merge = IndexMerge(
                options.chunk_size, options.digester, share, layer_trees=options.layer_trees
            )
            for layer in layers:
                # What a layer was is not kept once it is merged.
                merge.add(layer.hex, *_wait(futures.popleft(), job))
            return merge.finish(by_table=bool(known), table_problem=problem)


def _wait(future: Future[LayerIndex], job: _Job) -> LayerIndex:
    interval_s = None if job.options.progress is None else PROGRESS_INTERVAL_S
    while True:
        try:
            layer = future.result(interval_s)
        except FutureTimeoutError:
            if future.done():
                raise
            job.tell()
        else:
            job.tell()
            return layer
