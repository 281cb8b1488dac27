"""The tar streams of the layers of an image on this machine, read ahead by processes.

The interpreter's lock is kept by whoever reads headers, so that threads that inflate (see
:mod:`lamina.build.read_ahead`) wait for it as long as they work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.build.block_ring import BlockRing, BrokenStreamError
from lamina.build.read_ahead import BLOCK_BYTES, LayerToRead, read_layer
from lamina.build.shared_counters import SharedCounters
from lamina.build.workers import Workers
from lamina.posix.heap import keep_freed_memory
from lamina.registry.local import LocalRepository

if TYPE_CHECKING:
    from lamina.archive.blocks import Block
    from lamina.build.image_build import Job

PLACES: Final = 4
"""Blocks of each layer that wait to be used, at most."""

MIN_LAYER_BYTES: Final = 4 << 20
"""If no layer is so large, it is not worth the processes."""


class _Reader(NamedTuple):
    """A process, what it writes to, and its number."""

    workers: Workers
    ring: BlockRing
    number: int


class _Reading(NamedTuple):
    """What a process needs."""

    job: Job
    ring: BlockRing
    read_bytes: SharedCounters
    number: int


class ReaderProcesses:
    """Processes that take turns at the layers."""

    def __init__(self, readers: Sequence[_Reader], read_bytes: SharedCounters) -> None:
        self._readers = readers
        self._read_bytes = read_bytes
        self._told_bytes = 0

    def tars(self, layers: int, progress: Callable[[int], None]) -> Iterator[ReadTar]:
        """Have so many layers read; yield their streams, which are to be used in their order.

        ``progress`` is told the compressed bytes that were read.
        """

        def tell() -> None:
            total = self._read_bytes.total()
            progress(total - self._told_bytes)
            self._told_bytes = total

        readers = [self._readers[number % len(self._readers)] for number in range(layers)]
        futures = [reader.workers.submit(_pour, at) for at, reader in enumerate(readers)]
        for reader in self._readers:
            reader.workers.no_more()
        for reader, future in zip(readers, futures, strict=True):
            yield ReadTar(reader.ring, future, tell)


class ReadTar:
    """The tar stream of a layer."""

    compression = ""
    """Not known here."""

    def __init__(self, ring: BlockRing, whole: Future[None], tell: Callable[[], None]) -> None:
        self._ring = ring
        self._whole = whole
        self._tell = tell
        self._is_ended = False

    def read(self, _size: int, /) -> Block:
        """Return the next bytes, however many; b"" at the end, when all digests were verified.

        Raises what reading the layer raises.
        """
        if self._is_ended:
            return b""
        try:
            # A copy: parts of it wait to be compressed.
            block = bytes(self._ring.get())
        except BrokenStreamError:
            # It says why, or that its process died.
            self._whole.result()
            raise
        # Before the end comes, all that was read has been counted.
        self._tell()
        self._is_ended = not block
        return block


@contextmanager
def reader_processes(job: Job) -> Iterator[ReaderProcesses | None]:
    """Start the processes, or none where threads do as well.  Call it before threads are started.

    A registry is read by threads: a connection belongs to one process.
    """
    largest = max((layer.size for layer in job.layers), default=0)
    if job.threads < 2 or largest < MIN_LAYER_BYTES or not isinstance(job.source, LocalRepository):
        yield None
        return
    with ExitStack() as stack:
        count = min(job.threads, len(job.layers))
        read_bytes = stack.enter_context(closing(SharedCounters(count)))
        readers = []
        for number in range(count):
            ring = stack.enter_context(closing(BlockRing(BLOCK_BYTES, PLACES)))
            reading = _Reading(job, ring, read_bytes, number)
            readers.append(_Reader(stack.enter_context(Workers(1, _set_up, reading)), ring, number))
            ring.become_reader()
        yield ReaderProcesses(readers, read_bytes)


_reading: _Reading


def _set_up(reading: _Reading) -> None:
    global _reading  # noqa: PLW0603 - the process has one image
    _reading = reading
    reading.ring.become_writer()
    keep_freed_memory()


def _pour(number: int) -> None:
    job, ring, read_bytes, own = _reading
    diff_id = job.diff_ids[number] if job.diff_ids else None
    options = job.options
    # fmt: off
    read = LayerToRead(job.source, job.layers[number], diff_id, options.max_layer_bytes,
                       options.work_dir)
    # fmt: on

    def count(size_bytes: int) -> None:
        read_bytes.add(own, size_bytes)

    try:
        with ThreadPoolExecutor(1) as digesters:
            read_layer(read, digesters, ring.copy_in, count)
        ring.put(0)
    except BaseException:
        ring.fail()
        raise
