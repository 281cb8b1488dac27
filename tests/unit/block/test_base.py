"""Disks that are put together of others, against the bytes that they are to be."""

from __future__ import annotations

import random

import pytest

from lamina.block.base import BytesDisk, DiskReader, JoinedDisk, Segment

DATA = random.Random(1).randbytes(9000)
DISK = JoinedDisk([(100, BytesDisk(DATA[:4000])), (4100, BytesDisk(DATA[4000:]))], 10_000)
EXPECTED = bytes(100) + DATA + bytes(900)


def test_a_joined_disk_is_its_parts_and_zeros_between_them() -> None:
    assert DISK.size_bytes == len(EXPECTED)
    numbers = random.Random(2)
    for _ in range(300):
        offset, size = numbers.randrange(10_100), numbers.randrange(1, 6000)
        buffer = bytearray(b"x" * size)
        count = DISK.read_into(offset, buffer)
        assert bytes(buffer[:count]) == EXPECTED[offset : offset + size]
        assert DISK.is_hole(offset, count) == (not any(EXPECTED[offset : offset + count]))
        joined = list(DISK.segments(offset, size))
        assert sum(each.size_bytes for each in joined) == count
    assert list(DISK.segments(0, 10_000)) == [
        Segment(0, 100, is_hole=True),
        Segment(100, 9000, is_hole=False),
        Segment(9100, 900, is_hole=True),
    ]


def test_parts_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        JoinedDisk([(0, BytesDisk(bytes(10))), (9, BytesDisk(b"x"))])


def test_a_reader_gives_the_whole_disk_and_tells_how_far_it_is() -> None:
    told: list[int] = []
    reader = DiskReader(DISK, told.append)
    found = b"".join(iter(lambda: reader.read(777), b""))
    assert found == EXPECTED
    assert sum(told) == len(EXPECTED)
