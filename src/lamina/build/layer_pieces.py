"""From the chunks of a layer to the pieces of its blob, while they come.

Chunks are looked up and planned in their order; those that are new are gathered into pieces, and
some pieces at a time are compressed in a thread.  What waits is bounded in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from lamina.build.budget import ChunkCounter
from lamina.build.pack import PackedPieces, pack_pieces
from lamina.build.plan import Fate, LayerPlan, LayerPlanner
from lamina.build.scan import LayerScan

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lamina.build.budget import Share
    from lamina.build.byte_queue import ByteGate
    from lamina.build.known_chunks import KnownChunks
    from lamina.build.options import ConvertOptions

BATCH_BYTES = 1 << 20
BATCH_PIECES = 1024


_KNOWN, _PACKED = Fate.KNOWN, Fate.PACKED


class Batch(NamedTuple):
    """Some pieces under way: what becomes of them, and how many plain bytes they are."""

    future: Future[PackedPieces]
    size_bytes: int


class Machinery(NamedTuple):
    """What all layers share: chunks that are known, threads that compress, a bound of what is under
    way, and who takes entries.
    """

    known: KnownChunks
    packers: Executor
    gate: ByteGate
    add_entries: Callable[[LayerScan], None]


class LayerPieces:
    """Takes the content of one layer (see :class:`lamina.build.scan.LayerSink`); :attr:`batches`
    gets its pieces, and None at the end.
    """

    def __init__(
        self, layer: int, machinery: Machinery, options: ConvertOptions, budget: Share
    ) -> None:
        """Count chunks in ``budget``."""
        size, pack_size = options.chunk_size, options.pack_size
        self.batches: SimpleQueue[Batch | None] = SimpleQueue()
        self.entry_count = self.plain_bytes = self.new_bytes = 0
        self._planner = LayerPlanner(layer, machinery.known, size, pack_size, self._pack_is_full)
        self._machinery = machinery
        self._options = options
        self._counter = ChunkCounter(budget, size)
        self._pieces: list[Sequence[Buffer]] = []
        self._bytes = 0
        self._pack = bytearray()

    def add_entries(self, entries: LayerScan) -> None:
        """Pass on some entries."""
        self.entry_count += entries.entry_count
        self._machinery.add_entries(entries)

    def add_chunk(self, digest: bytes, pieces: Sequence[memoryview], size: int) -> None:
        """Take the next chunk.  Raises FormatError or UnsupportedError if there are too many."""
        self.plain_bytes += size
        fate = self._planner.add(digest, size)
        if fate is not _KNOWN:
            self.new_bytes += size
            if fate is _PACKED:
                for piece in pieces:
                    self._pack += piece
            else:
                self._add_piece(pieces, size)
        if len(self._planner.plan.references) >= self._counter.due:
            self._count()

    def finish(self) -> LayerPlan:
        """Send off what is left, and return the plan.

        Raises FormatError if the layer does not fit in one blob.
        """
        self._count()
        plan = self._planner.finish()
        self._send()
        self.batches.put(None)
        # What was known is not kept any longer than it is needed.
        del self._planner, self._machinery
        return plan

    def _count(self) -> None:
        plan = self._planner.plan
        self._counter.count(len(plan.references), len(plan.references) - len(plan.fresh))

    def _pack_is_full(self) -> None:
        pack, self._pack = self._pack, bytearray()
        self._add_piece([pack], len(pack))

    def _add_piece(self, parts: Sequence[Buffer], size: int) -> None:
        self._pieces.append(parts)
        self._bytes += size
        if self._bytes >= BATCH_BYTES or len(self._pieces) >= BATCH_PIECES:
            self._send()

    def _send(self) -> None:
        if not self._pieces:
            return
        self._machinery.gate.enter(self._bytes)
        compressor, level = self._options.compressor, self._options.level
        future = self._machinery.packers.submit(pack_pieces, self._pieces, compressor, level)
        self.batches.put(Batch(future, self._bytes))
        self._pieces, self._bytes = [], 0
