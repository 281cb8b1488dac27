"""Build one native image: all layers of one manifest, from the source's blobs to blobs pushed.

The data flows in one direction and is written once, where it belongs.  Threads read, inflate and
digest the layers ahead (:mod:`lamina.build.read_ahead`); the converting thread reads headers, looks
up chunks and plans pieces, one layer after the other (:mod:`lamina.build.layer_pieces`); threads
compress these, and for each layer one writes them in their order (:mod:`lamina.build.layer_blob`).
All of that is bounded in bytes.  Meanwhile another process makes the trees
(:mod:`lamina.build.tree_process`).  Every byte of the result depends on the source and the options
alone, never on the order in which things finish.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lamina.build.budget import Budget
from lamina.build.byte_queue import ByteGate
from lamina.build.options import ConvertOptions
from lamina.build.read_processes import reader_processes
from lamina.build.tree_process import TreeProcess
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import digest
from lamina.oci.manifest import Descriptor
from lamina.posix.processors import processor_count
from lamina.registry.repository import Repository

if TYPE_CHECKING:
    from lamina.build.assembly import BuiltImage
    from lamina.build.sealing import BlobSeal

FINISHERS = 4
UNDER_WAY_BYTES = 16 << 20
"""Plain bytes that wait to be compressed or written."""


class Phases:
    """Seconds of wall time that the converting thread spends in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(slots=True)
class Job:
    """The layers of one image, and where its blobs go."""

    source: Repository
    destination: Repository
    layers: Sequence[Descriptor]
    options: ConvertOptions
    diff_ids: Sequence[str] = ()
    """One a layer; none if nobody knows them."""
    seals: Sequence[BlobSeal] = field(init=False)
    """One a layer; none if the image is not sealed."""
    budget: Budget = field(init=False)
    """A share for each layer, and the last one for their merge."""

    def __post_init__(self) -> None:
        seal = self.options.seal
        self.seals = () if seal is None else seal.blob_seals(len(self.layers))
        self.budget = Budget(len(self.layers) + 1)

    @property
    def threads(self) -> int:
        """Tell how many layers are read, and batches of pieces compressed, at a time."""
        return self.options.jobs or processor_count()


@contextmanager
def built_image(job: Job, phases: Phases) -> Iterator[BuiltImage]:
    """Convert the layers and push their blobs; bootstrap and manifest are left to the caller.

    While the result is used, threads and temporary files go away.  The tar streams of the layers
    must have the job's ``diff_ids``.
    Raises what the layers, the temporary files and the two repositories raise.
    """
    gate = ByteGate(UNDER_WAY_BYTES)
    with ExitStack() as stack:
        stack.enter_context(closing(job.budget))
        stack.enter_context(no_garbage_collection())
        with phases("start"):
            # The process must be forked before the first thread starts.
            share = job.budget.share(len(job.layers))
            trees = stack.enter_context(TreeProcess(job.options, share))
            readers = stack.enter_context(reader_processes(job))
            _preload(job.options)
            packers = stack.enter_context(ThreadPoolExecutor(job.threads, "lamina-pack"))
            finishers = stack.enter_context(ThreadPoolExecutor(FINISHERS, "lamina-finish"))
            from lamina.build.assembly import Assembly
        yield Assembly(job, trees, readers, packers, finishers, gate, phases).run()


def _preload(options: ConvertOptions) -> None:
    """Load what the threads will need, once."""
    with contextlib.suppress(ImportError):
        import isal.igzip  # noqa: F401 - absent on some machines
    digest(options.digester, b"")
    for compressor in {options.compressor, Compressor.ZSTD}:
        compress(compressor, b"")


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from walking trees of a hundred thousand nodes, which have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
