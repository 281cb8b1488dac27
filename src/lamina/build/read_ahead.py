"""The tar streams of the layers of an image, read ahead by threads of their own.

Reading, inflating and the digests of the layer take as long as all the rest together, and release
the interpreter's lock; so they run beside it, for some layers at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from lamina.build.byte_queue import ByteQueue
from lamina.build.layer_stream import layer_stream

if TYPE_CHECKING:
    from typing_extensions import Buffer

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

    def read(self, _size: int, /) -> bytes | bytearray:
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
            _read((source, layer, diff_id), max_layer_bytes, queue, progress, work_dir)
        except BaseException as error:  # noqa: BLE001 - the reader of the queue gets it
            queue.end(error)
        else:
            queue.end()

    readers = ThreadPoolExecutor(at_once, "lamina-read")
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


def _read(
    named: tuple[Repository, Descriptor, str | None],
    max_layer_bytes: int,
    queue: ByteQueue,
    progress: Callable[[int], None],
    work_dir: str | None,
) -> None:
    source, layer, diff_id = named
    with (
        source.open_blob(layer) as raw,
        _Counted(raw, progress) as counted,
        layer_stream(
            cast("BinaryIO", counted), layer, diff_id, max_layer_bytes, work_dir
        ) as stream,
    ):
        while block := stream.read(BLOCK_BYTES):
            queue.put(block)
        # The last read verifies the digest, and may lie behind the end of what is compressed.
        while counted.read(BLOCK_BYTES):
            pass


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
