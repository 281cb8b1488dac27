"""Directory blocks: entries of 12 bytes, then the names they point to (RAFS v6 §1.13).

A directory is a sequence of blocks, each complete in itself and sorted by name over all of them, so
a name is found by two binary searches: over the first names of the blocks, then over the names of
one block.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import lt, or_
from typing import TYPE_CHECKING

from lamina.erofs.layout import BLOCK_SIZE, DIRENT, MAX_NAME_SIZE, Dirent
from lamina.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ENTRY_SIZE = DIRENT.size


def entry_count(block: Buffer, nid: int) -> int:
    """Return the number of entries of one directory block of the directory ``nid``."""
    view = memoryview(block)
    if len(view) < _ENTRY_SIZE:
        raise FormatError(f"directory {nid}: a block of {len(view)} bytes cannot hold an entry")
    name_offset = DIRENT.unpack_from(view)[1]
    count, rest = divmod(name_offset, _ENTRY_SIZE)
    if rest or count == 0 or name_offset > len(view):
        raise FormatError(f"directory {nid}: first name offset {name_offset} is not valid")
    return int(count)


def split_block(block: bytes, nid: int) -> tuple[list[bytes], tuple[int, ...], tuple[int, ...]]:
    """Return (names, nids, file types) of one directory block, ``.`` and ``..`` among them.

    Raises:
        FormatError: names the entry of the directory ``nid`` whose name is not one.
    """
    count = entry_count(block, nid)
    fields = DIRENT.iter_unpack(block[: count * _ENTRY_SIZE])
    nids, starts, types = zip(*fields, strict=True)
    end = block.find(b"\0", starts[-1])
    ends = (*starts[1:], len(block) if end < 0 else end)
    names = list(map(block.__getitem__, map(slice, starts, ends)))
    text = block[starts[0] : ends[-1]]
    if (
        not all(map(lt, starts, ends))
        or len(max(names, key=len)) > MAX_NAME_SIZE
        or b"/" in text
        or b"\0" in text
    ):
        raise _bad_name(names, starts, ends, nid)
    return names, nids, types


def _bad_name(
    names: list[bytes], starts: Sequence[int], ends: Sequence[int], nid: int
) -> FormatError:
    for position, (name, start, end) in enumerate(zip(names, starts, ends, strict=True)):
        if not 0 < end - start <= MAX_NAME_SIZE or len(name) != end - start:
            break
        if b"/" in name or b"\0" in name:
            return FormatError(f"directory {nid}: entry {position} has the name {name!r}")
    return FormatError(f"directory {nid}: entry {position} has a name outside its block")


def block_entries(block: bytes, nid: int) -> Iterator[Dirent]:
    """Return the entries of one directory block, ``.`` and ``..`` among them."""
    return map(Dirent, *split_block(block, nid))


def find_in_blocks(
    block_at: Callable[[int], memoryview], block_count: int, name: bytes, nid: int
) -> int | None:
    """Return the nid that ``name`` leads to, or None; reads O(log n) entries.

    ``block_at(i)`` gives block i of the directory ``nid``.
    """
    low, high = 0, block_count
    while high - low > 1:
        middle = (low + high) // 2
        block = block_at(middle)
        if _name_at(block, 0, entry_count(block, nid), nid) <= name:
            low = middle
        else:
            high = middle
    if low >= block_count:
        return None
    return _find_in_block(block_at(low), name, nid)


def _find_in_block(block: memoryview, name: bytes, nid: int) -> int | None:
    count = entry_count(block, nid)
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        found = _name_at(block, middle, count, nid)
        if found == name:
            return int(DIRENT.unpack_from(block, middle * _ENTRY_SIZE)[0])
        if found < name:
            low = middle + 1
        else:
            high = middle
    return None


def _name_at(block: memoryview, position: int, count: int, nid: int) -> bytes:
    start = DIRENT.unpack_from(block, position * _ENTRY_SIZE)[1]
    if position + 1 < count:
        end = DIRENT.unpack_from(block, (position + 1) * _ENTRY_SIZE)[1]
        name = bytes(block[start:end])
    else:
        name = bytes(block[start : start + MAX_NAME_SIZE + 1]).partition(b"\0")[0]
    if not 0 < len(name) <= MAX_NAME_SIZE:
        raise FormatError(f"directory {nid}: entry {position} has a name outside its block")
    return name


def sorted_names(names: Iterable[bytes]) -> list[bytes]:
    """Return the names of a directory's children in storage order, ``.`` and ``..`` among them.

    Raises:
        FormatError: a name that no directory can hold.
    """
    ordered = sorted(names)
    for dots in (b".", b".."):
        position = bisect_left(ordered, dots)
        if ordered[position : position + 1] == [dots]:
            raise FormatError(f"a directory has a child with the name {dots!r}")
        ordered.insert(position, dots)
    joined = b"".join(ordered)
    if not ordered[0] or b"/" in joined or b"\0" in joined:
        raise FormatError(
            "a directory has a child with an empty name, or a slash or zero byte in it"
        )
    if max(map(len, ordered)) > MAX_NAME_SIZE:
        raise FormatError(f"a directory has a child with a name of more than {MAX_NAME_SIZE} bytes")
    return ordered


def directory_blocks(
    names: list[bytes], block_size: int = BLOCK_SIZE
) -> tuple[list[list[bytes]], int]:
    """Distribute sorted names over blocks; return them and the size of the directory in bytes."""
    total = _ENTRY_SIZE * len(names) + sum(map(len, names))
    if total <= block_size:
        return [names], total
    blocks: list[list[bytes]] = []
    used = block_size
    for name in names:
        used += _ENTRY_SIZE + len(name)
        if used > block_size:
            blocks.append([])
            used = _ENTRY_SIZE + len(name)
        blocks[-1].append(name)
    return blocks, (len(blocks) - 1) * block_size + used


def encode_block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """Return one directory block, without padding; ``nids`` must fit in 32 bits."""
    start = _ENTRY_SIZE * len(names)
    # An entry is three u32: the number and its zero high half, then name offset | type << 16.
    words = array("I", bytes(start))
    words[0::3] = array("I", nids)
    offsets = accumulate(map(len, names), initial=start)
    words[2::3] = array("I", map(or_, offsets, [kind << 16 for kind in types]))
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes() + b"".join(names)
