"""How requests of NBD are answered, in the three styles that a client can choose among.

NetworkBlockDevice, ``doc/proto.md``, "Transmission phase"; numbers are big-endian.  A simple reply
is 16 bytes, and the data of a read behind them.  A structured one is a chunk that says what is in
it; an extended one too, with lengths of 64 bits.  Each answer here is one chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, Protocol

from lamina.wire.nbd import CONTEXT_ID, MAX_NAME_BYTES, Request

SIMPLE_REPLY_MAGIC: Final = 0x67446698
CHUNK_MAGIC: Final = 0x668E33EF
EXTENDED_CHUNK_MAGIC: Final = 0x6E8A278C
CHUNK_DONE: Final = 1
"""Flag of the last chunk of a reply."""

# 0 magic, 4 error, 8 cookie
SIMPLE_REPLY: Final = Struct(">IIQ")
# 0 magic, 4 flags, 6 type, 8 cookie, 16 length
CHUNK: Final = Struct(">IHHQI")
# 0 magic, 4 flags, 6 type, 8 cookie, 16 offset of the request, 24 length
EXTENDED_CHUNK: Final = Struct(">IHHQQQ")
_DATA_CHUNK: Final = Struct(">IHHQIQ")
_U64: Final = Struct(">Q")
_HOLE: Final = Struct(">QI")
_ERROR: Final = Struct(">IH")
_CONTEXT: Final = Struct(">I")
_EXTENT: Final = Struct(">II")
_EXTENDED_CONTEXT: Final = Struct(">II")
_EXTENDED_EXTENT: Final = Struct(">QQ")


class Chunk(IntEnum):
    """Types of chunks."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXTENDED = 6
    ERROR = 0x8001


class Extent(IntFlag):
    """Flags of a range in ``base:allocation``."""

    HOLE = 1
    ZERO = 2


_HOLE_FLAGS: Final = int(Extent.HOLE | Extent.ZERO)


class Replies(Protocol):
    """What any style has; each method returns what is sent."""

    def succeed(self, request: Request) -> bytes:
        """Answer what needs no data."""

    def fail(self, request: Request, error: int, message: str, /) -> bytes:
        """End a request that failed; the message is for people, if it can be sent."""

    def data_head(self, request: Request) -> bytes:
        """Head all the data of a read, which follow."""


class SimpleReplies:
    """What every client takes."""

    def succeed(self, request: Request) -> bytes:
        """Return a reply without data."""
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)

    def fail(self, request: Request, error: int, _message: str, /) -> bytes:
        """Return the number of the error."""
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)

    def data_head(self, request: Request) -> bytes:
        """Return what comes before all the data of a read."""
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie)


class StructuredReplies:
    """Chunks, which can say that something is a hole."""

    def succeed(self, request: Request) -> bytes:
        """Return an empty chunk."""
        return self._chunk(Chunk.NONE, request, b"")

    def fail(self, request: Request, error: int, message: str, /) -> bytes:
        """Return the number and the message."""
        text = message.encode(errors="replace")[:MAX_NAME_BYTES]
        return self._chunk(Chunk.ERROR, request, _ERROR.pack(error, len(text)) + text)

    def data_head(self, request: Request) -> bytes:
        """Return the head of the one chunk with the data."""
        size_bytes = 8 + request.size_bytes
        return _DATA_CHUNK.pack(
            CHUNK_MAGIC, CHUNK_DONE, 1, request.cookie, size_bytes, request.offset
        )

    def hole(self, request: Request) -> bytes:
        """Return where it is, and its size."""
        return self._chunk(
            Chunk.OFFSET_HOLE, request, _HOLE.pack(request.offset, request.size_bytes)
        )

    def block_status(self, request: Request, extents: Iterable[tuple[int, bool]]) -> bytes:
        """Return the ranges, none of which is longer than the request."""
        body = [_EXTENT.pack(size, _HOLE_FLAGS if is_hole else 0) for size, is_hole in extents]
        return self._chunk(Chunk.BLOCK_STATUS, request, _CONTEXT.pack(CONTEXT_ID) + b"".join(body))

    def _chunk(self, kind: Chunk, request: Request, body: bytes) -> bytes:
        return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, kind, request.cookie, len(body)) + body


class ExtendedReplies(StructuredReplies):
    """Chunks with extended headers."""

    def data_head(self, request: Request) -> bytes:
        """Return the head of the one chunk with the data."""
        return self._head(Chunk.OFFSET_DATA, request, 8 + request.size_bytes) + _U64.pack(
            request.offset
        )

    def block_status(self, request: Request, extents: Iterable[tuple[int, bool]]) -> bytes:
        """Return the ranges."""
        body = [
            _EXTENDED_EXTENT.pack(size, _HOLE_FLAGS if is_hole else 0) for size, is_hole in extents
        ]
        head = _EXTENDED_CONTEXT.pack(CONTEXT_ID, len(body))
        return self._chunk(Chunk.BLOCK_STATUS_EXTENDED, request, head + b"".join(body))

    def _chunk(self, kind: Chunk, request: Request, body: bytes) -> bytes:
        return self._head(kind, request, len(body)) + body

    def _head(self, kind: Chunk, request: Request, size_bytes: int) -> bytes:
        return EXTENDED_CHUNK.pack(
            EXTENDED_CHUNK_MAGIC, CHUNK_DONE, kind, request.cookie, request.offset, size_bytes
        )
