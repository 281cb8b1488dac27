"""GNU tar's files with holes: where the data of such an entry belongs.

Four forms are in use.  The old one (type ``S``) keeps its map in the header and in blocks behind
it; the pax forms 0.0 and 0.1 keep it in records, and 1.0 as text before the data.  In all of them
the pieces of data lie one after the other, and everything else of the file is zeros.

Source: GNU tar manual, "Storing Sparse Files" and "Basic Tar Format".  Old header, bytes::

    386 four pairs of offset 12 and size 12 | 482 is extended 1 | 483 size of the file 12
    in each block behind it: 0 twenty-one pairs | 504 is extended 1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from lamina.archive.blocks import BlockReader
from lamina.archive.pax import parse_number
from lamina.errors import FormatError, UnsupportedError

BLOCK: Final = 512
PREFIX: Final = b"GNU.sparse."
OLD_FLAG: Final = b"S"
NAME: Final = PREFIX + b"name"

MAX_MAP_BYTES: Final = 1 << 20
"""Longest map that is read, as it is in the archive."""

_FIELD: Final = 12
_OLD_PAIRS: Final = 386, 4
_OLD_IS_EXTENDED: Final = 482
_OLD_SIZE: Final = 483
_MORE_PAIRS: Final = 0, 21
_MORE_IS_EXTENDED: Final = 504
_MAX_DIGITS: Final = 20


class Segment(NamedTuple):
    """A piece of data: its offset in the file and its length, in bytes."""

    offset: int
    size: int


class SparseFile(NamedTuple):
    """The whole length of a file, and its data in order."""

    size: int
    segments: tuple[Segment, ...]


def is_sparse(flag: bytes, records: dict[bytes, bytes]) -> bool:
    """Tell whether a header, with its records, is that of a sparse file in any form."""
    return flag == OLD_FLAG or any(keyword.startswith(PREFIX) for keyword in records)


def sparse_error(path: bytes) -> UnsupportedError:
    """Return the error where a sparse file cannot be read, because its data is in no one piece."""
    return UnsupportedError(
        f"{path.decode('utf-8', 'replace')} is stored as a GNU sparse file, "
        "whose content is not in one piece",
        hint="convert the image (lamina convert), or make the layer without tar's --sparse option",
    )


def read_old_map(header: bytes, reader: BlockReader, number: Callable[[bytes], int]) -> SparseFile:
    """Read the map of the old form, whose further blocks come next in ``reader``.

    ``number`` reads a field of a header.  Raises FormatError for a map that is too long or cut off.
    """
    size = number(header[_OLD_SIZE : _OLD_SIZE + _FIELD])
    numbers = _fields(header, *_OLD_PAIRS, number)
    is_extended, map_bytes = header[_OLD_IS_EXTENDED], 0
    while is_extended:
        block = reader.take(BLOCK)
        map_bytes += BLOCK
        if len(block) < BLOCK or map_bytes > MAX_MAP_BYTES:
            raise FormatError("the map of a sparse file is too long, or the archive ends in it")
        numbers += _fields(block, *_MORE_PAIRS, number)
        is_extended = block[_MORE_IS_EXTENDED]
    return SparseFile(size, _segments(numbers))


def _fields(block: bytes, start: int, pairs: int, number: Callable[[bytes], int]) -> list[int]:
    """Return the numbers of the pairs in a block up to the first that is not filled in."""
    numbers: list[int] = []
    for at in range(start, start + pairs * 2 * _FIELD, 2 * _FIELD):
        pair = block[at : at + _FIELD], block[at + _FIELD : at + 2 * _FIELD]
        if not pair[0].strip(b"\0") or not pair[1].strip(b"\0"):
            break
        numbers += map(number, pair)
    return numbers


def read_pax_map(records: dict[bytes, bytes], reader: BlockReader, stored: int) -> SparseFile:
    """Read the map of a pax form; that of 1.0 comes next in ``reader``, in ``stored`` bytes.

    Raises FormatError for a map that is malformed, UnsupportedError for another version.
    """
    size = parse_number(records, PREFIX + b"realsize")
    if (other := parse_number(records, PREFIX + b"size")) is not None:
        size = other
    version = records.get(PREFIX + b"major", b"0"), records.get(PREFIX + b"minor", b"0")
    if size is None:
        raise FormatError("the header of a sparse file does not tell its size")
    if version == (b"1", b"0"):
        return SparseFile(size, _segments(_leading_map(reader, stored)))
    if version not in ((b"0", b"0"), (b"0", b"1")):
        raise UnsupportedError("a sparse file has a map of an unknown version")
    text = records.get(PREFIX + b"map", b"")
    numbers = [_number(word) for word in text.split(b",")] if text else []
    count = parse_number(records, PREFIX + b"numblocks")
    if count is not None and 2 * count != len(numbers):
        raise _malformed()
    return SparseFile(size, _segments(numbers))


def _leading_map(reader: BlockReader, stored: int) -> list[int]:
    """Read decimal numbers, a line each, the first of which counts the pairs, in whole blocks."""
    lines: list[bytes] = []
    rest = b""
    wanted, map_bytes = 1, 0
    while len(lines) < wanted:
        map_bytes += BLOCK
        if map_bytes > min(stored, MAX_MAP_BYTES):
            raise _malformed()
        *more, rest = (rest + reader.copy(BLOCK)).split(b"\n")
        lines += more
        if lines:
            wanted = 1 + 2 * _number(lines[0])
    return [_number(line) for line in lines[1:wanted]]


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise _malformed()
    return int(text)


def _segments(numbers: Sequence[int]) -> tuple[Segment, ...]:
    if len(numbers) % 2:
        raise _malformed()
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return tuple(Segment(offset, size) for offset, size in pairs if size)


def check(file: SparseFile, stored: int) -> None:
    """Raise FormatError unless the pieces are in order, inside the file, and ``stored`` bytes."""
    end = 0
    for offset, size in file.segments:
        if offset < end or size < 0:
            raise _malformed()
        end = offset + size
    if end > file.size or sum(segment.size for segment in file.segments) != stored:
        raise _malformed()


def _malformed() -> FormatError:
    return FormatError("the map of a sparse file in the archive is malformed")
