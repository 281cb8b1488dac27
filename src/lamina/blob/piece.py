"""What is fetched and decompressed at a time."""

from __future__ import annotations

from typing import NamedTuple


class Piece(NamedTuple):
    """A contiguous compressed extent of a blob that decodes to one chunk, or to a batch of several.

    Of a gzip context it is the begin, up to the chunks that it holds; so pieces may overlap there.
    ``offset`` and ``size`` are its place in the blob file, ``raw_size`` what it decodes to, all in
    bytes; it holds ``count`` chunks from chunk ``first`` on.
    """

    index: int  # type: ignore[assignment]
    offset: int
    size: int
    raw_size: int
    compressed: bool
    first: int
    count: int  # type: ignore[assignment]
