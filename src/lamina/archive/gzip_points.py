"""Inflate a gzip stream and note the points from which it can be inflated again.

One pass of zlib that stops every 32 KiB of output, and at the ends of deflate blocks where a point
may be; so it costs no more than inflating does, plus a call per stop.  Any number of members, any
flags.  Sources: RFC 1951, RFC 1952; RAFS v6 §7.1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Protocol, Self

from lamina.archive import deflate_library as libz
from lamina.archive.access_points import WINDOW_BYTES, AccessPoint, PointMap
from lamina.archive.window_pruning import LOOKAHEAD_BYTES, WindowPruner
from lamina.errors import FormatError

OUTPUT_BYTES = 256 << 10
"""What is handed out at a time: it stays in the processor's cache while it is digested."""

STOP_BYTES = 32 << 10
"""Plain bytes after which it is noted how much input they took, so that reads need little more."""

MAX_STOP_INPUT_BYTES = STOP_BYTES + 64
"""Most input that these take: stored blocks are the worst, with 5 bytes each 64 KiB at most, and
what zlib holds back.
"""

DEFAULT_SPACING_BYTES = 128 << 10
"""Compressed bytes from one point to the next, at least: what a read of one small file costs."""

MAX_OUTPUT_SPACING_BYTES = 2 << 20
"""Plain bytes after which the next boundary becomes a point, however little they take."""

GZIP_MAGIC = b"\x1f\x8b"

MAX_HEADER_BYTES = 512 << 10
"""Longest begin of a member without a byte of data, as when a layer is decompressed to be converted
(isal).
"""


class Thinner(Protocol):
    """Zeroes what is not needed of windows, and may pack them."""

    def thin_out(self, points: list[AccessPoint], following: bytes) -> None:
        """Thin out the window of the last point, ``following`` being the input after it."""

    def close(self) -> None:
        """Free what it works with; may be called again."""


class PruningThinner:
    """Prunes windows at once, and packs them if it is told how."""

    def __init__(self, pack_window: Callable[[bytes], tuple[bytes, int]] | None = None) -> None:
        self._pruner = WindowPruner()
        self._pack_window = pack_window

    def thin_out(self, points: list[AccessPoint], following: bytes) -> None:
        """Thin out the window of the last point."""
        point = points[-1]
        window = self._pruner.pruned(point.window, following, point.bits, point.byte)
        point = point._replace(window=window)
        points[-1] = point if self._pack_window is None else point.with_packed(self._pack_window)

    def close(self) -> None:
        """Free the inflate."""
        self._pruner.close()


class GzipPoints:
    """A gzip stream that is read once, from its begin to its end.

    ``read_input()`` returns the next compressed bytes, b"" at the end.  :attr:`map` grows while it
    is read.  Windows are thinned out by ``thinner`` once it is known what is needed of them; those
    of points that lie close together are left as they are.  ``new_buffer`` gives 256 KiB for what
    is handed out next, which must stay until the read after it.
    """

    compression = "gzip"

    def __init__(
        self,
        read_input: Callable[[], bytes],
        spacing_bytes: int = DEFAULT_SPACING_BYTES,
        thinner: Thinner | None = None,
        new_buffer: Callable[[], bytearray | memoryview] | None = None,
    ) -> None:
        # A new one each time: what was handed out is not written to again.
        self._new_buffer = new_buffer or (lambda: bytearray(OUTPUT_BYTES))
        self.map = PointMap()
        self._read_input = read_input
        self._spacing = spacing_bytes
        self._thinner = thinner or PruningThinner()
        self._stream = libz.new_inflate()
        self._inflate = libz.load_library().inflate
        self._reference = ctypes.byref(self._stream)
        self._buffer: bytearray | memoryview = bytearray(OUTPUT_BYTES)
        self._address = 0
        self._before = b""
        self._input = b""
        self._input_start = 0
        self._last_byte = 0
        self._following: bytes | None = None
        self._out = 0
        # From there on one call may reach the next point.
        self._near_in = self._near_out = 0
        self._member_in = self._member_out = 0
        self._members = 0
        self._in_member = False
        self._closed = False

    @property
    def in_offset(self) -> int:
        """Compressed bytes consumed."""
        return self._input_start + len(self._input) - int(self._stream.avail_in)

    def read(self, _size: int = OUTPUT_BYTES, /) -> bytearray | memoryview:
        """Return the next decompressed bytes, at most 256 KiB; b"" only at the end.

        Raises FormatError for damaged or truncated data.
        """
        stream = self._stream
        self._before = bytes(self._buffer[-WINDOW_BYTES:])
        self._buffer = self._new_buffer()
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        stream.next_out = self._address
        end = self._address + OUTPUT_BYTES
        while stream.next_out < end:
            stream.avail_out = min(STOP_BYTES, end - stream.next_out)
            if not self._inflate_to_stop():
                # Less than a full buffer is the end, after which no window is needed.
                return self._buffer[: stream.next_out - self._address]
        return self._buffer

    def _inflate_to_stop(self) -> bool:
        """Fill the output that is available; False at the end of the stream."""
        stream = self._stream
        while stream.avail_out:
            if not self._in_member and not self._next_member():
                return False
            if not stream.avail_in and not self._refill():
                raise FormatError(
                    "the layer ends in the middle of its gzip data",
                    hint="the layer is truncated; fetch it again",
                )
            self._step()
        # Inflate stops after the input that this output needs, and no more than a byte.
        self.map.add(self.in_offset, self._out)
        return True

    def _step(self) -> None:
        stream = self._stream
        before, had = stream.avail_out, stream.avail_in
        out = self._out
        at_blocks = (
            out >= self._near_out
            or self._input_start + len(self._input) - had >= self._near_in
            # The begin of a member is a boundary as well.
            or out == self._member_out
        )
        code = self._inflate(self._reference, libz.Z_BLOCK if at_blocks else libz.Z_NO_FLUSH)
        self._out += before - stream.avail_out
        if self._out == self._member_out and self.in_offset - self._member_in > MAX_HEADER_BYTES:
            raise FormatError(
                f"the layer is not valid gzip: a header of more than {MAX_HEADER_BYTES} bytes",
                hint="the layer is damaged; fetch it again",
            )
        if code == libz.Z_STREAM_END:
            self.map.add(self.in_offset, self._out)
            self._in_member = False
        elif code != libz.Z_OK and (code != libz.Z_BUF_ERROR or stream.avail_in == had):
            message = (stream.msg or b"").decode("ascii", "replace")
            raise FormatError(
                f"the layer is not valid gzip: {message or code}",
                hint="the layer is damaged; fetch it again",
            )
        elif at_blocks and stream.data_type & libz.AT_BLOCK_END:
            self._boundary(stream.data_type)

    def _boundary(self, state: int) -> None:
        here = self.in_offset
        self.map.add(here, self._out)
        if state & libz.IN_LAST_BLOCK:
            return
        points = self.map.points
        self._thin_out(at_end=False)
        if points:
            last = points[-1]
            near = here - last.in_offset < self._spacing
            if near and self._out - last.out_offset < MAX_OUTPUT_SPACING_BYTES:
                return
        bits = state & libz.UNUSED_BITS
        byte = 0
        if bits:
            offset = here - self._input_start - 1
            byte = self._input[offset] if offset >= 0 else self._last_byte
        end = self._stream.next_out - self._address
        size = min(WINDOW_BYTES, self._out - self._member_out)
        window = self._before + self._buffer[max(end - WINDOW_BYTES, 0) : end]
        window = window[len(window) - size :]
        self.map.add_point(AccessPoint(here, self._out, bits, byte, window))
        self._near_in = here + self._spacing - MAX_STOP_INPUT_BYTES
        self._near_out = self._out + MAX_OUTPUT_SPACING_BYTES - STOP_BYTES
        # What is still to come for the point before would be taken for this one's.
        self._following = None
        if window:
            start = here - self._input_start
            self._following = self._input[start : start + LOOKAHEAD_BYTES]
            self._thin_out(at_end=False)

    def _refill(self) -> bool:
        if self._input:
            self._last_byte = self._input[-1]
        left = self._input[len(self._input) - self._stream.avail_in :]
        more = self._read_input()
        self._input_start += len(self._input) - len(left)
        self._input = left + more if left else more
        if self._following is not None:
            self._following += more[: LOOKAHEAD_BYTES - len(self._following)]
            self._thin_out(at_end=not more)
        self._stream.next_in = ctypes.cast(ctypes.c_char_p(self._input), ctypes.c_void_p).value
        self._stream.avail_in = len(self._input)
        return bool(more)

    def _next_member(self) -> bool:
        rest = self._skip_padding() if self._members else self._peek()
        if not rest:
            if not self._members:
                raise FormatError("the layer ends before its gzip data")
            return False
        if rest[:2] != GZIP_MAGIC:
            raise FormatError("the layer has bytes after its last gzip member that are not gzip")
        libz.load_library().reset(self._reference)
        self._members += 1
        self._member_in, self._member_out = self.in_offset, self._out
        self._in_member = True
        return True

    def _thin_out(self, *, at_end: bool) -> None:
        """Zero what is not needed of the last window, once what follows it has been seen."""
        if self._following is None or (len(self._following) < LOOKAHEAD_BYTES and not at_end):
            return
        self._thinner.thin_out(self.map.points, self._following)
        self._following = None

    def _peek(self) -> bytes:
        """Return the next two bytes of input, fewer at the end."""
        while self._stream.avail_in < 2 and self._refill():
            pass
        start = len(self._input) - self._stream.avail_in
        return self._input[start : start + 2]

    def _skip_padding(self) -> bytes:
        """Skip the zeros after a member; return the two bytes that follow."""
        stream = self._stream
        while self._peek()[:1] == b"\0":
            rest = self._input[len(self._input) - stream.avail_in :]
            skipped = len(rest) - len(rest.lstrip(b"\0"))
            stream.next_in = (stream.next_in or 0) + skipped
            stream.avail_in -= skipped
        return self._peek()

    def close(self) -> None:
        """Free the state of zlib; may be called again."""
        if not self._closed:
            self._closed = True
            self._thinner.close()
            libz.end_inflate(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
