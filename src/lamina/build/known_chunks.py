"""The chunks of all layers so far, by their digests: 50 bytes a chunk.

A hash table with open addressing over one pool of digests, for a dictionary takes four times as
much.  Places depend on Python's keyed hash, so nobody can choose digests that collide; what is
found does not.
"""

from __future__ import annotations

from array import array

from lamina.codec.digest import DIGEST_SIZE, chosen_digests

LAYER_SHIFT = 32
FIRST_PLACES = 1 << 10


class KnownChunks:
    """Digest -> ``layer << 32 | slot`` of the first chunk with it; chunks keep their order."""

    def __init__(self) -> None:
        # 0: nobody; else the number of a chunk, from 1 on.
        self._table = array("I", bytes(4 * FIRST_PLACES))
        self._digests = bytearray()
        self._references = array("Q")

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._references)

    def find_or_add(self, digest: bytes, reference: int) -> int:
        """Return the reference of the first chunk with a digest of 32 bytes, which is now
        ``reference`` if there was none.
        """
        table, digests = self._table, self._digests
        mask = len(table) - 1
        place = hash(digest) & mask
        while number := table[place]:
            end = number * DIGEST_SIZE
            if digests[end - DIGEST_SIZE : end] == digest:
                return self._references[number - 1]
            place = place + 1 & mask
        digests += digest
        self._references.append(reference)
        table[place] = len(self._references)
        if 2 * len(self._references) > len(table):
            self._grow()
        return reference

    def digests(self, first: int, slots: array[int]) -> bytearray:
        """Return the digests of chunks, numbered from the chunk ``first`` on."""
        return chosen_digests(self._digests, slots, first)

    def _grow(self) -> None:
        table = array("I", bytes(4 * 4 * len(self._table)))
        mask = len(table) - 1
        for number in range(1, len(self._references) + 1):
            end = number * DIGEST_SIZE
            place = hash(bytes(self._digests[end - DIGEST_SIZE : end])) & mask
            while table[place]:
                place = place + 1 & mask
            table[place] = number
        self._table = table
