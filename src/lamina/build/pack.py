"""Compress the pieces of a blob; each call takes some of them, in any thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lamina.codec.compress import Compressor, compress_all

if TYPE_CHECKING:
    from typing_extensions import Buffer


class PackedPieces(NamedTuple):
    """Pieces one after the other, as they are to be stored, and the plain size of each."""

    stored: list[bytes]
    plain_sizes: list[int]


def pack_pieces(
    pieces: Sequence[Sequence[Buffer]], compressor: Compressor, level: int | None
) -> PackedPieces:
    """Compress pieces, each of which is given in parts.

    A piece whose size does not shrink is kept as it is.
    """
    plain = [parts[0] if len(parts) == 1 else b"".join(parts) for parts in pieces]
    sizes = [len(memoryview(piece)) for piece in plain]
    if compressor == Compressor.NONE:
        return PackedPieces([bytes(piece) for piece in plain], sizes)
    packed = compress_all(compressor, plain, level)
    stored = [
        data if 0 < len(data) < size else bytes(piece)
        for data, size, piece in zip(packed, sizes, plain, strict=True)
    ]
    return PackedPieces(stored, sizes)
