"""Build one native image: all layers of one manifest, from the source's blobs to blobs pushed.

The order of work is what makes it fast.  Workers scan layers and pack segments; meanwhile this
process plans, merges and lays out the trees, and a few threads hash and push what is packed.
Workers start before the modules for all that are loaded.  Every byte of the result depends on the
source and the options alone, never on the order in which things finish.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamina.build import tasks
from lamina.build.options import ConvertOptions, work_folder
from lamina.build.workers import Workers
from lamina.registry.manifest import Descriptor
from lamina.registry.repository import ClientOptions, Repository

if TYPE_CHECKING:
    from lamina.build.assembly import BuiltImage

FINISHERS = 4


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


@contextmanager
def built_image(
    source: Repository,
    client: ClientOptions | None,
    destination: Repository,
    layers: Sequence[Descriptor],
    options: ConvertOptions,
    phases: Phases,
    diff_ids: Sequence[str] = (),
) -> Iterator[BuiltImage]:
    """Convert the layers and push their blobs; bootstrap and manifest are left to the caller.

    While the result is used, workers and temporary files go away.  ``client`` is what ``source``
    was opened with; the tar streams of the layers must have their ``diff_ids``.
    Raises what the layers, the temporary files and the two repositories raise.
    """
    with phases("start workers"):
        tasks.preload(options)
        files: list[tasks.LayerFiles] = []
        job = tasks.Job(source, client, layers, files, options, diff_ids)
    jobs = options.jobs or len(os.sched_getaffinity(0))
    try:
        with phases("start workers"):
            files += [tasks.LayerFiles(work_folder(options.work_dir)) for _ in layers]
        # Workers must be forked before the first thread starts, and end before the threads.
        with (
            no_garbage_collection(),
            ThreadPoolExecutor(FINISHERS, "lamina-finish") as finishers,
            Workers(jobs, tasks.set_up, job) as workers,
        ):
            with phases("start workers"):
                scans = [workers.submit(tasks.scan, number) for number in range(len(layers))]
                from lamina.build.assembly import Assembly
            yield Assembly(job, destination, workers, finishers, phases).run(scans)
    finally:
        job.close()


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
