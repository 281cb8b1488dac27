"""The inner values of BLAKE3's tree, many at a time (the BLAKE3 paper, sections 2.1 to 2.5).

BLAKE3 cuts its input into leaves of 1 KiB.  Each has a chaining value of 32 bytes, each pair of
subtrees too, and that of the root is the digest.  Libraries give digests only; whoever proves a
part of an input needs the values below.  They are computed for arrays of leaves with numpy, which
is imported with this module: import it only where it is needed.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint32]
"""Chaining values have the shape (values, 8), leaves (leaves, 256)."""

LEAF_BYTES: Final = 1024

_BLOCK_BYTES: Final = 64
_WORDS_PER_BLOCK: Final = 16
_LEAVES_AT_ONCE: Final = 4096
"""Bounds memory; more are hardly faster."""

# Domain flags.
_CHUNK_START: Final = 1
_CHUNK_END: Final = 2
_PARENT: Final = 4
_ROOT: Final = 8

_IV: Final = np.array(
    (
        0x6A09E667,
        0xBB67AE85,
        0x3C6EF372,
        0xA54FF53A,
        0x510E527F,
        0x9B05688C,
        0x1F83D9AB,
        0x5BE0CD19,
    ),
    dtype=np.uint32,
)
_PERMUTATION: Final = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_ROUNDS: Final = 7
_TO_DIAGONALS: Final = ((1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))


def _schedule() -> list[list[list[int]]]:
    """For each round the words of the message that each of its four additions takes."""
    order = list(range(16))
    rounds = []
    for _ in range(_ROUNDS):
        columns, diagonals = order[:8], order[8:]
        rounds.append([columns[0::2], columns[1::2], diagonals[0::2], diagonals[1::2]])
        order = [order[place] for place in _PERMUTATION]
    return rounds


_SCHEDULE: Final = _schedule()


def leaf_values(leaves: Words, numbers: Words, sizes_bytes: Words | None = None) -> Words:
    """Return the values of *leaves*, which are parts of longer inputs.

    *leaves* is (n, 256), in the byte order of this machine; *numbers* (n,) says which leaf of its
    input each is; *sizes_bytes* (n,), 1 to 1024, where some are not full, whose rest is zeros.
    """
    values = np.empty((len(leaves), 8), np.uint32)
    for start in range(0, len(leaves), _LEAVES_AT_ONCE):
        part = slice(start, start + _LEAVES_AT_ONCE)
        sizes = None if sizes_bytes is None else sizes_bytes[part]
        values[part] = _leaf_values(leaves[part], numbers[part], sizes).T
    return values


def parent_values(left: Words, right: Words, roots: npt.NDArray[np.bool_] | None = None) -> Words:
    """Return the values over pairs of values, (n, 8) each; where *roots* (n,) says so, digests."""
    message = np.ascontiguousarray(np.concatenate((left, right), axis=1).T)
    flags = np.full(len(left), _PARENT, np.uint32)
    if roots is not None:
        flags[roots] |= _ROOT
    start = np.repeat(_IV[:, None], len(left), axis=1)
    sizes = np.full(len(left), _BLOCK_BYTES, np.uint32)
    return np.ascontiguousarray(_compress(start, message, np.zeros_like(flags), sizes, flags).T)


def _leaf_values(leaves: Words, numbers: Words, sizes: Words | None) -> Words:
    """Return the same for some, as (8, n)."""
    count = len(leaves)
    values = np.repeat(_IV[:, None], count, axis=1)
    if sizes is None:
        sizes = np.full(count, LEAF_BYTES, np.uint32)
    blocks = (sizes + (_BLOCK_BYTES - 1)) // _BLOCK_BYTES
    for block in range(int(blocks.max(initial=0))):
        here = np.flatnonzero(blocks > block)
        columns: slice | npt.NDArray[np.intp] = slice(None) if len(here) == count else here
        flags = np.where(blocks[columns] == block + 1, _CHUNK_END, 0).astype(np.uint32)
        if block == 0:
            flags |= _CHUNK_START
        words = slice(block * _WORDS_PER_BLOCK, (block + 1) * _WORDS_PER_BLOCK)
        message = np.ascontiguousarray(leaves[columns, words].T)
        sizes_here = np.minimum(sizes[columns] - block * _BLOCK_BYTES, _BLOCK_BYTES)
        values[:, columns] = _compress(
            values[:, columns], message, numbers[columns], sizes_here, flags
        )
    return values


def _compress(values: Words, message: Words, counters: Words, sizes: Words, flags: Words) -> Words:
    """Compute the compression function on columns: *values* (8, n), *message* (16, n), the others
    (n,).
    """
    state = np.empty((4, 4, values.shape[1]), np.uint32)
    state[:2] = values.reshape(2, 4, -1)
    state[2] = _IV[:4, None]
    state[3, 0], state[3, 1], state[3, 2], state[3, 3] = counters, 0, sizes, flags
    spare = np.empty_like(state[0])
    for first, second, third, fourth in _SCHEDULE:
        _mix(state, message[first], message[second], spare)
        for row, order in enumerate(_TO_DIAGONALS, 1):
            state[row] = state[row].take(order, axis=0)
        _mix(state, message[third], message[fourth], spare)
        for row, order in enumerate(reversed(_TO_DIAGONALS), 1):
            state[row] = state[row].take(order, axis=0)
    result: Words = (state[:2] ^ state[2:]).reshape(8, -1)
    return result


def _mix(state: Words, first: Words, second: Words, spare: Words) -> None:
    """Do the quarter-rounds of four columns, in place."""
    a, b, c, d = state
    a += b
    a += first
    d ^= a
    _rotate_right(d, 16, spare)
    c += d
    b ^= c
    _rotate_right(b, 12, spare)
    a += b
    a += second
    d ^= a
    _rotate_right(d, 8, spare)
    c += d
    b ^= c
    _rotate_right(b, 7, spare)


def _rotate_right(words: Words, bits: int, spare: Words) -> None:
    np.right_shift(words, bits, out=spare)
    np.left_shift(words, 32 - bits, out=words)
    np.bitwise_or(words, spare, out=words)
