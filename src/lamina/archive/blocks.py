"""A forward-only cursor over a byte stream that hands out its own buffers instead of copies.

A tar walker needs three moves: take a few contiguous bytes (a header), look at a long run of data
piece by piece, and skip.  :class:`BlockReader` offers exactly these over blocks of any size, so
file data is never copied here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from lamina.errors import FormatError

Block = bytes | bytearray | memoryview

BLOCK_BYTES = 1 << 20
"""How much is asked of a stream at a time: large enough to amortise the call, small enough to stay
in the cache.
"""


class BlockReader:
    """Cursor over the blocks that ``read_block`` returns; an empty block is the end.

    ``offset`` is the position in the stream.  Views from :meth:`pieces` stay valid as long as the
    blocks do: some streams keep each, some until the next one is read.
    """

    def __init__(self, read_block: Callable[[], Block]) -> None:
        self._read_block = read_block
        self._block = memoryview(b"")
        self._position = 0
        self._block_start = 0

    @classmethod
    def over(cls, source: BinaryIO | bytes | memoryview) -> BlockReader:
        """Return a cursor over a file object (read in blocks of 1 MiB) or over a whole buffer."""
        if isinstance(source, bytes | bytearray | memoryview):
            blocks = iter((memoryview(source), memoryview(b"")))
            return cls(lambda: next(blocks, memoryview(b"")))
        stream = source
        return cls(lambda: stream.read(BLOCK_BYTES))

    @property
    def offset(self) -> int:
        """Bytes consumed since the beginning of the stream."""
        return self._block_start + self._position

    def take(self, size_bytes: int) -> bytes:
        """Return the next ``size_bytes`` bytes, or fewer at the end of the stream."""
        end = self._position + size_bytes
        if end <= len(self._block):
            taken = bytes(self._block[self._position : end])
            self._position = end
            return taken
        return self.copy(size_bytes, partial=True)

    def copy(self, size_bytes: int, *, partial: bool = False) -> bytes:
        """Return a copy of the next ``size_bytes`` bytes; raises as :meth:`pieces`."""
        # Each piece before the next one is asked for.
        return b"".join(map(bytes, self.pieces(size_bytes, partial=partial)))

    def pieces(self, size_bytes: int, *, partial: bool = False) -> Iterator[memoryview]:
        """Yield the next ``size_bytes`` bytes as views of the blocks they lie in.

        Raises FormatError if the stream ends before them, unless ``partial``.
        """
        while size_bytes > 0:
            have = len(self._block) - self._position
            if not have:
                if not self._advance():
                    if partial:
                        return
                    raise FormatError(
                        f"the archive ends {size_bytes} bytes early, at offset {self.offset}",
                        hint="the layer is truncated or damaged; fetch it again",
                    )
                continue
            take = min(have, size_bytes)
            start = self._position
            self._position = start + take
            size_bytes -= take
            yield self._block[start : start + take]

    def skip_to(self, offset: int) -> None:
        """Move on to an offset of the stream; raises FormatError if it ends before that."""
        if offset != self._block_start + self._position:
            self.skip(offset - self.offset)

    def view(self, size_bytes: int) -> memoryview | None:
        """Return the next ``size_bytes`` bytes as one view, or None, and stay here, if they are
        in several blocks.
        """
        start = self._position
        end = start + size_bytes
        if end > len(self._block):
            return None
        self._position = end
        return self._block[start:end]

    def skip(self, size_bytes: int) -> None:
        """Move on by ``size_bytes``; raises FormatError if the stream ends before that."""
        end = self._position + size_bytes
        if end <= len(self._block):
            self._position = end
            return
        for _ in self.pieces(size_bytes):
            pass

    def skip_padding(self, size_bytes: int) -> None:
        """Move on by ``size_bytes``, or to the end of the stream if that comes first."""
        if self._position + size_bytes <= len(self._block):
            self._position += size_bytes
            return
        for _ in self.pieces(size_bytes, partial=True):
            pass

    def drain(self) -> int:
        """Read the stream to its end and return its total length in bytes."""
        while self._advance():
            pass
        self._position = len(self._block)
        return self.offset

    def _advance(self) -> bool:
        block = memoryview(self._read_block())
        if not block:
            return False
        self._block_start += len(self._block)
        self._block = block
        self._position = 0
        return True
