"""Points from which a compressed layer can be decoded without what comes before.

A *point* is a boundary in the compressed stream with its place in the decompressed one.  For
gzip it is a boundary of deflate blocks, which may lie inside a byte and needs the 32 KiB of output
before it (the *window*); for zstd it is the begin of a frame and needs nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lamina.errors import UnsupportedError

WINDOW_BYTES = 32 << 10
"""Farthest that deflate refers back (RFC 1951 §2)."""


MEMBER_END_BOUNDARIES = 4
"""An empty block, the last block, the end of the member, and the begin of the next one."""

FOLLOWING_BYTES = 8
"""How much input more is named than is needed: nydusd gives up where its input ends with the header
of a member.
"""


MAX_BOUNDARIES = 1 << 22
"""Most of them in one layer: 128 GiB of plain data have so many."""

MAX_POINTS = 1 << 20


class AccessPoint(NamedTuple):
    """Where decoding can begin.

    ``in_offset`` is the first whole byte to feed and ``out_offset`` the position in the
    decompressed stream.  ``bits`` high bits of ``byte``, the one before ``in_offset``, come first.
    ``packed`` is the window in the form that is stored, with its plain size, in place of ``window``
    if that was asked for: a large layer has hundreds of megabytes of them.
    """

    in_offset: int
    out_offset: int
    bits: int = 0
    byte: int = 0
    window: bytes = b""
    packed: tuple[bytes, int] = (b"", 0)

    def with_packed(self, pack: Callable[[bytes], tuple[bytes, int]]) -> AccessPoint:
        """Return the point with its window packed."""
        return self._replace(window=b"", packed=pack(self.window)) if self.window else self


@dataclass(slots=True)
class PointMap:
    """All boundaries of a stream (``ins`` -> ``outs``, ascending), and the chosen points among
    them.
    """

    ins: array[int] = field(default_factory=lambda: array("Q"))
    outs: array[int] = field(default_factory=lambda: array("Q"))
    points: list[AccessPoint] = field(default_factory=list)

    def add(self, in_offset: int, out_offset: int) -> None:
        """Note a boundary.

        Raises UnsupportedError for a stream of so many pieces that they cannot be remembered.
        """
        if len(self.ins) >= MAX_BOUNDARIES:
            raise _too_many(f"{MAX_BOUNDARIES} boundaries")
        self.ins.append(in_offset)
        self.outs.append(out_offset)

    def add_point(self, point: AccessPoint) -> None:
        """Note a point, in place of one before it that yields nothing up to there.

        Raises UnsupportedError for too many.
        """
        if self.points and self.points[-1].out_offset == point.out_offset:
            self.points.pop()
        if len(self.points) >= MAX_POINTS:
            raise _too_many(f"{MAX_POINTS} access points")
        self.points.append(point)

    def in_before(self, out_offset: int) -> int:
        """Return an input position at or before which all that yields ``out_offset`` begins."""
        position = bisect_right(self.outs, out_offset) - 1
        return self.ins[position] if position >= 0 else 0

    def in_after(self, out_offset: int, size_bytes: int) -> int:
        """Return how much input yields all output before ``out_offset``, and a little more; the
        stream has ``size_bytes``.
        """
        position = bisect_left(self.outs, out_offset)
        # Where a gzip member ends there, nydusd wants to see its trailer and the next header.
        last = min(position + MEMBER_END_BOUNDARIES, len(self.outs) - 1)
        while position < last and self.outs[position + 1] == out_offset:
            position += 1
        if position == len(self.ins):
            return size_bytes
        return min(self.ins[position] + FOLLOWING_BYTES, size_bytes)

    def spans(
        self, offsets: Sequence[int], sizes: Sequence[int], size_bytes: int
    ) -> tuple[array[int], array[int]]:
        """Return :meth:`in_before` of the begins and :meth:`in_after` of the ends of many pieces.

        Those that lie one after the other between two boundaries are looked for once.
        """
        outs = self.outs
        starts, ends = array("Q"), array("Q")
        start = end = 0
        # Between which boundaries all begins, and all ends, have what was found last.
        begin, begin_limit = 0, -1
        above, below = 0, -1
        for offset, size in zip(offsets, sizes, strict=True):
            if not begin <= offset < begin_limit:
                at = bisect_right(outs, offset)
                start = self.in_before(offset)
                begin = outs[at - 1] if at else 0
                begin_limit = outs[at] if at < len(outs) else -1
            out_end = offset + size
            if not above < out_end < below:
                at = bisect_left(outs, out_end)
                end = self.in_after(out_end, size_bytes)
                above = outs[at - 1] if at else 0
                # An end at a boundary has what comes with it as well.
                below = outs[at] if at < len(outs) and outs[at] > out_end else -1
            starts.append(start)
            ends.append(end)
        return starts, ends


def _too_many(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the compressed layer has more than {what}, which is too much to index",
        hint="convert the image: lamina convert",
    )
