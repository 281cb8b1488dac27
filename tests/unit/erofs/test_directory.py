from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.erofs.directory import (
    block_entries,
    directory_blocks,
    encode_block,
    entry_count,
    find_in_blocks,
    sorted_names,
)
from lamina.errors import FormatError

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


def encoded(names: list[bytes]) -> tuple[list[memoryview], dict[bytes, int]]:
    blocks, size = directory_blocks(names)
    numbers = {name: 1000 + position for position, name in enumerate(names)}
    data = []
    for block in blocks:
        data.append(
            encode_block(
                block, [numbers[name] for name in block], [len(name) % 8 for name in block]
            )
        )
    assert all(len(block) <= 4096 for block in data)
    assert size == (len(data) - 1) * 4096 + len(data[-1])
    padded = [block.ljust(4096, b"\0") for block in data[:-1]] + data[-1:]
    return [memoryview(block) for block in padded], numbers


@given(st.sets(NAMES, max_size=120))
def test_every_name_is_found_again(names: set[bytes]) -> None:
    ordered = sorted_names(names)
    assert ordered == sorted([*names, b".", b".."])
    blocks, numbers = encoded(ordered)
    read = [entry for block in blocks for entry in block_entries(bytes(block), 7)]
    assert [entry.name for entry in read] == ordered
    assert [entry.file_type for entry in read] == [len(name) % 8 for name in ordered]
    for name in ordered:
        assert find_in_blocks(blocks.__getitem__, len(blocks), name, 7) == numbers[name]


@given(st.sets(NAMES, max_size=60), NAMES)
def test_a_missing_name_is_not_found(names: set[bytes], missing: bytes) -> None:
    blocks, _ = encoded(sorted_names(names - {missing}))
    assert find_in_blocks(blocks.__getitem__, len(blocks), missing, 7) is None


def test_a_block_is_filled_to_the_last_byte() -> None:
    # 12 + 244 bytes for each entry: 16 of them are exactly one block.
    names = [b"%03d" % number + b"n" * 241 for number in range(17)]
    blocks, size = directory_blocks(names)
    assert [len(block) for block in blocks] == [16, 1]
    assert size == 4096 + 256
    assert len(encode_block(blocks[0], list(range(16)), [1] * 16)) == 4096


def test_no_block_of_an_empty_directory_is_searched() -> None:
    assert find_in_blocks(lambda _: memoryview(b""), 0, b"x", 7) is None


@pytest.mark.parametrize(
    "names", [[b""], [b"a/b"], [b"a\0"], [b"."], [b".."], [b"x" * 256], [b"ok", b"/"]]
)
def test_impossible_names_are_refused(names: list[bytes]) -> None:
    with pytest.raises(FormatError, match="a directory has a child"):
        sorted_names(names)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\0" * 11,
        bytes(12),
        bytes(8) + b"\x0d\0\x01\0" + b"a" * 20,
        bytes(8) + b"\xff\xff\x01\0" + b"a" * 20,
        bytes(8) + b"\x18\0\x01\0" + bytes(8) + b"\x10\0\x01\0" + b"ab",
        bytes(8) + b"\x18\0\x01\0" + bytes(8) + b"\xff\0\x01\0" + b"ab",
        bytes(8) + b"\x0c\0\x01\0",
        bytes(8) + b"\x0c\0\x01\0" + b"\0abc",
        bytes(8) + b"\x0c\0\x01\0" + b"a/b",
        bytes(8) + b"\x0c\0\x01\0" + b"n" * 300,
    ],
)
def test_damaged_blocks_name_the_directory(block: bytes) -> None:
    with pytest.raises(FormatError, match="directory 77"):
        list(block_entries(block, 77))


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=4))
def test_searching_garbage_ends(block: bytes, name: bytes) -> None:
    try:
        find_in_blocks(lambda _: memoryview(block), 3, name, 5)
        assert entry_count(block, 5) > 0
    except FormatError:
        pass
