"""What the worker processes do, and what they inherit for it."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from lamina.archive.stream import open_layer
from lamina.build.budget import Budget
from lamina.build.diff_ids import checked_tar
from lamina.build.options import ConvertOptions
from lamina.build.pack import Segment, pack_segment
from lamina.build.scan import LayerScan, scan_layer
from lamina.build.toc_annotations import rounds_times
from lamina.codec.compress import Compressor, compress
from lamina.codec.digest import digest
from lamina.errors import StoreError
from lamina.linux.heap import keep_freed_memory
from lamina.linux.unnamed_file import open_unnamed_file
from lamina.registry.manifest import Descriptor
from lamina.registry.repository import ClientOptions, Repository, open_repository

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lamina.blob.seal import PieceSeal
    from lamina.blob.seal_class import PublicPieces, TenantSeal
    from lamina.build.sealing import BlobSeal

COUNTER_BYTES = 8


class LayerFiles:
    """The two temporary files of a layer, without a name: the tar stream, and the packed pieces."""

    def __init__(self, work_dir: str) -> None:
        try:
            self.spool = open_unnamed_file(work_dir)
            self.packed = open_unnamed_file(work_dir)
        except OSError as error:
            raise StoreError(
                f"No temporary files can be made in {work_dir}: {error.strerror}.",
                hint="Set TMPDIR, or name another directory for temporary files.",
            ) from error

    def drop_spool(self) -> None:
        """Free the spool's space; the workers still hold it open, so it is emptied."""
        os.ftruncate(self.spool.fileno(), 0)

    def close(self) -> None:
        """Free both files."""
        self.spool.close()
        self.packed.close()


@dataclass(slots=True)
class Job:
    """The layers of one image, as the workers inherit them.

    A registry is opened anew in each worker, because connections cannot be shared; anything else is
    used as it is.
    """

    source: Repository
    client: ClientOptions | None
    layers: Sequence[Descriptor]
    files: Sequence[LayerFiles]
    options: ConvertOptions
    diff_ids: Sequence[str] = ()
    """One a layer; none if nobody knows them."""
    read_bytes: SharedCounters = field(init=False)
    budget: Budget = field(init=False)
    """A share for each layer, and the last one for their merge."""
    seals: Sequence[BlobSeal] = field(init=False)
    """One a layer; none if the image is not sealed."""

    def __post_init__(self) -> None:
        seal = self.options.seal
        self.seals = () if seal is None else seal.blob_seals(len(self.layers))
        self.read_bytes = SharedCounters(len(self.layers))
        self.budget = Budget(len(self.layers) + 1)

    def close(self) -> None:
        """Free the temporary files and counters."""
        self.budget.close()
        for files in self.files:
            files.close()
        self.read_bytes.close()


class SharedCounters:
    """Numbers in memory that forked processes share; each has one writer."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, COUNTER_BYTES * max(count, 1))
        self._view: memoryview[int] = memoryview(self._memory).cast("Q")

    def add(self, counter: int, amount: int) -> None:
        """Add to a counter."""
        self._view[counter] += amount

    def total(self) -> int:
        """Return the sum of all counters."""
        return sum(self._view)

    def close(self) -> None:
        """Give the memory back."""
        self._view.release()
        self._memory.close()


class _Counted(io.RawIOBase):
    """Counts what is read from a source."""

    def __init__(self, source: BinaryIO, counters: SharedCounters, counter: int) -> None:
        super().__init__()
        self._source = source
        self._counters = counters
        self._counter = counter

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._counters.add(self._counter, len(data))
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        size: int = self._source.readinto(buffer)  # type: ignore[attr-defined]
        self._counters.add(self._counter, size)
        return size


_job: Job


def preload(options: ConvertOptions) -> None:
    """Load what the workers will need, once, before they are forked."""
    with contextlib.suppress(ImportError):
        import isal.igzip  # noqa: F401 - absent on some machines
    digest(options.digester, b"")
    for compressor in {options.compressor, Compressor.ZSTD}:
        compress(compressor, b"")


def set_up(job: Job) -> None:
    """Take over the job in a worker process."""
    global _job  # noqa: PLW0603 - a worker has one job
    _job = job
    keep_freed_memory()
    if job.source.reference.transport == "docker":
        job.source = open_repository(job.source.reference, options=job.client)


def scan(layer: int) -> tuple[LayerScan, float]:
    """Scan a layer into its spool; return (scan, seconds of CPU time).  Its compressed digest is
    verified.
    """
    start = time.process_time()
    descriptor = _job.layers[layer]
    options = _job.options
    with _job.source.open_blob(descriptor) as raw, _Counted(raw, _job.read_bytes, layer) as counted:
        source = cast("BinaryIO", counted)
        tar = open_layer(source, descriptor.media_type, options.max_layer_bytes)
        stream = checked_tar(tar, descriptor, _job.diff_ids[layer] if _job.diff_ids else None)
        spool = _job.files[layer].spool
        budget = _job.budget.share(layer)
        found = scan_layer(stream, spool, options.chunk_size, options.digester, budget)
        # The last read verifies the digest, and may lie behind the end of the archive.
        while counted.read(1 << 20):
            pass
    if rounds_times(descriptor):
        found.round_times()
    return found, time.process_time() - start


class Packed(NamedTuple):
    """A packed segment: lengths of its pieces, compressed and as stored; CPU time in seconds; the
    leaves of the pieces if they are sealed, and their messages if for a tenant.
    """

    sizes: array[int]
    stored_sizes: array[int]
    cpu_s: float
    leaves: bytes = b""
    messages: bytes = b""


def pack(layer: int, segment: Segment) -> Packed:
    """Pack a segment of a layer."""
    start = time.process_time()
    files, options = _job.files[layer], _job.options
    spool, packed = files.spool.fileno(), files.packed.fileno()
    if options.seal is None:
        sizes = pack_segment(segment, spool, packed, options.compressor, options.level)
        return Packed(sizes, sizes, time.process_time() - start)
    from lamina.build.sealing import SegmentSeal

    seal = SegmentSeal(_piece_seal(layer), segment.first_piece)
    sizes = pack_segment(segment, spool, packed, options.compressor, options.level, seal)
    proof = bytes(seal.leaves), bytes(seal.messages)
    return Packed(sizes, seal.stored_sizes, time.process_time() - start, *proof)


@cache
def _piece_seal(layer: int) -> PieceSeal | TenantSeal | PublicPieces:
    return _job.seals[layer].pieces()
