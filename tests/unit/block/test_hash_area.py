"""Hash trees that come from elsewhere: whole, of their root, or refused."""

from __future__ import annotations

import random
import struct

import pytest

from lamina.block.base import BytesDisk
from lamina.block.hash_area import make_hash_area, read_hash_area
from lamina.block.verity import VerityOptions
from lamina.errors import Error, FormatError, IntegrityError

DATA = random.Random(3).randbytes(4096 * 300)
AREA = make_hash_area(BytesDisk(DATA), VerityOptions(salt=b"salt"), bytes(16))


def test_a_tree_is_read_as_it_was_made() -> None:
    assert read_hash_area(AREA.data, AREA.verity.root) == AREA
    disk, verity = AREA.behind(BytesDisk(DATA))
    assert verity.hash_offset_bytes == len(DATA)
    tail = bytearray(len(AREA.data))
    assert disk.read_into(len(DATA), tail) == len(tail)
    assert tail == AREA.data


def test_a_tree_of_another_root_is_refused() -> None:
    with pytest.raises(IntegrityError):
        read_hash_area(AREA.data, bytes(32))


@pytest.mark.parametrize("level", [4096, 2 * 4096, 3 * 4096 - 1])
def test_levels_that_do_not_fit_each_other_are_refused(level: int) -> None:
    damaged = bytearray(AREA.data)
    damaged[level] ^= 1
    with pytest.raises(Error):
        read_hash_area(bytes(damaged), AREA.verity.root)


def test_nothing_of_a_superblock_makes_it_work_long_or_take_memory() -> None:
    numbers = random.Random(4)
    for size in (0, 8, 511, 512, 4096, len(AREA.data) - 1):
        with pytest.raises(FormatError):
            read_hash_area(AREA.data[:size])
    refused = 0
    for _ in range(3000):
        damaged = bytearray(AREA.data)
        at = numbers.randrange(336)
        damaged[at] ^= 1 << numbers.randrange(8)
        try:
            read_hash_area(bytes(damaged), AREA.verity.root)
        except Error:
            refused += 1
    # Most bits of a superblock are of the salt that is not there, and of the UUID.
    assert refused > 300
    for blocks in (0, 1, 1 << 63):
        damaged = bytearray(AREA.data)
        struct.pack_into("<Q", damaged, 72, blocks)
        with pytest.raises(Error):
            read_hash_area(bytes(damaged))
