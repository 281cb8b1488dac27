"""The tar streams of the layers of an image, read ahead by threads of their own.

Reading, inflating and the digests of the layer take as long as all the rest together, and release
the interpreter's lock; so they run beside it, for some layers at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from lamina.archive.erofs_layer import is_erofs_layer
from lamina.build.byte_queue import ByteQueue
from lamina.build.diff_ids import TarDigest, tar_digest
from lamina.build.layer_stream import layer_stream

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lamina.archive.blocks import Block
    from lamina.oci.manifest import Descriptor
    from lamina.registry.repository import Repository

BLOCK_BYTES = 1 << 20
AHEAD_BYTES = 4 << 20
"""How much of each layer waits to be used, at most."""


class QueuedTar:
    """The tar stream of a layer, from its queue."""

    def __init__(self, queue: ByteQueue) -> None:
        self._queue = queue

    @property
    def compression(self) -> str:
        """Not known here."""
        return ""

    def read(self, _size: int, /) -> Block:
        """Return the next bytes, however many; b"" at the end, when all digests were verified."""
        return self._queue.get()


@contextmanager
def layer_tars(
    source: Repository,
    layers: Sequence[Descriptor],
    diff_ids: Sequence[str],
    max_layer_bytes: int,
    at_once: int,
    progress: Callable[[int], None],
    work_dir: str | None = None,
) -> Iterator[list[QueuedTar]]:
    """Read layers, ``at_once`` of them ahead; the streams are to be used in their order.

    ``progress`` is told the compressed bytes of each read, by several threads.  What has to be put
    down on the way is put into *work_dir*.
    """
    queues = [ByteQueue(AHEAD_BYTES) for _ in layers]

    def pump(number: int) -> None:
        queue, layer = queues[number], layers[number]
        try:
            diff_id = diff_ids[number] if diff_ids else None
            read = LayerToRead(source, layer, diff_id, max_layer_bytes, work_dir)
            read_layer(read, digesters, queue.put, progress)
        except BaseException as error:  # noqa: BLE001 - the reader of the queue gets it
            queue.end(error)
        else:
            queue.end()

    readers = ThreadPoolExecutor(at_once, "lamina-read")
    digesters = ThreadPoolExecutor(at_once, "lamina-digest")
    is_whole = False
    try:
        for number in range(len(layers)):
            readers.submit(pump, number)
        yield [QueuedTar(queue) for queue in queues]
        is_whole = True
    finally:
        for queue in queues:
            queue.cancel()
        # After a failure nobody waits for a source that is silent: who reads it ends with the
        # next block, or when the source is closed.
        readers.shutdown(wait=is_whole, cancel_futures=True)
        digesters.shutdown(wait=is_whole)


class LayerToRead(NamedTuple):
    """A layer, where it is, and how it is read (see :func:`layer_stream`)."""

    source: Repository
    layer: Descriptor
    diff_id: str | None
    max_layer_bytes: int
    work_dir: str | None


def read_layer(
    read: LayerToRead,
    digesters: Executor,
    put: Callable[[Block], None],
    progress: Callable[[int], None],
) -> None:
    """Read a layer to its end, its digests verified, and *put* the blocks of its tar.

    The tar is digested by one of *digesters*; a file system is before it becomes a tar.
    """
    source, layer, diff_id, max_layer_bytes, work_dir = read
    digest = None if is_erofs_layer(layer.media_type) else tar_digest(layer, diff_id)
    if digest is not None:
        diff_id = None
    with (
        source.open_blob(layer) as raw,
        _Counted(raw, progress) as counted,
        closing(_Digested(digest, digesters)) as digested,
        layer_stream(
            cast("BinaryIO", counted), layer, diff_id, max_layer_bytes, work_dir
        ) as stream,
    ):
        while block := stream.read(BLOCK_BYTES):
            digested.put(block)
            put(block)
        digested.check()
        # The last read verifies the digest, and may lie behind the end of what is compressed.
        while counted.read(BLOCK_BYTES):
            pass


class _Digested:
    """Has a thread digest the blocks that are put, beside the one that inflates."""

    def __init__(self, digest: TarDigest | None, threads: Executor) -> None:
        self._queue = ByteQueue(AHEAD_BYTES)
        self._done: Future[None] | None = None
        if digest is not None:
            self._done = threads.submit(_digest_all, self._queue, digest)

    def put(self, block: Block) -> None:
        """Pass on a block."""
        if self._done is not None:
            self._queue.put(block)

    def check(self) -> None:
        """Wait for the digest; raise IntegrityError if it is wrong."""
        if self._done is not None:
            self._queue.end()
            self._done.result()

    def close(self) -> None:
        """Let the thread go."""
        self._queue.cancel()


def _digest_all(queue: ByteQueue, digest: TarDigest) -> None:
    try:
        while block := queue.get():
            digest.update(block)
        digest.check()
    finally:
        # Nobody waits for room in vain.
        queue.cancel()


class _Counted(io.RawIOBase):
    """Counts what is read from a source."""

    def __init__(self, source: BinaryIO, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._source = source
        self._progress = progress

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._progress(len(data))
        return data

    def readinto(self, buffer: Buffer, /) -> int:
        size: int = self._source.readinto(buffer)  # type: ignore[attr-defined]
        self._progress(size)
        return size
