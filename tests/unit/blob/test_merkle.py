from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.blob import merkle
from lamina.errors import FormatError, IntegrityError


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def reference_root(pieces: list[bytes]) -> bytes:
    """The definition, by recursion (RFC 6962 §2.1)."""

    def top(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        half = 1 << (len(leaves) - 1).bit_length() - 1
        return sha(b"\x01" + top(leaves[:half]) + top(leaves[half:]))

    leaves = [
        sha(b"\x00" + i.to_bytes(8, "big") + len(p).to_bytes(8, "big") + p)
        for i, p in enumerate(pieces)
    ]
    inner = top(leaves) if leaves else sha(b"")
    return sha(b"\x02" + len(pieces).to_bytes(8, "big") + inner)


def root(pieces: list[bytes]) -> bytes:
    return merkle.root_of(merkle.leaf_hash(i, piece) for i, piece in enumerate(pieces))


@given(st.lists(st.binary(max_size=20), max_size=40))
def test_it_is_the_tree_of_the_definition(pieces: list[bytes]) -> None:
    assert root(pieces) == reference_root(pieces)


def test_vectors() -> None:
    assert root([]).hex() == "f0c1e0b4cd1983b9c92909f8145cc102993e4c797489c0ba98639fd93056b82f"
    assert root([b"a"]).hex() == "8b3d2d83cabd8ff00fc949c6e3aae65b2f292f223ae6c914ff37832efc18bff5"
    assert (
        root([b"a", b"bc", b""]).hex()
        == "187863af95045028860f2e319621d89f08b5749ccd0eb2db5ff704b48fbe43c0"
    )


@given(st.lists(st.binary(max_size=5), min_size=2, max_size=12), st.data())
def test_swap_truncation_and_extension_change_the_root(
    pieces: list[bytes], data: st.DataObject
) -> None:
    before = root(pieces)
    assert root(pieces[:-1]) != before
    assert root([*pieces, b""]) != before
    assert root([*pieces, pieces[-1]]) != before
    i = data.draw(st.integers(0, len(pieces) - 1))
    assert root([*pieces[:i], pieces[i] + b"\0", *pieces[i + 1 :]]) != before
    j = data.draw(st.integers(0, len(pieces) - 1))
    if pieces[i] != pieces[j]:
        swapped = pieces[:]
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert root(swapped) != before


def flipped(piece: bytes) -> bytes:
    return bytes([byte ^ 1 for byte in piece]) or b"~"


@given(st.binary(max_size=30), st.integers(0, 5))
def test_leaves(piece: bytes, index: int) -> None:
    leaf = merkle.leaf_hash(index, piece)
    merkle.check_leaf(index, memoryview(piece), leaf, "b")
    for wrong in ((index + 1, piece), (index, piece + b"\0"), (index, flipped(piece))):
        with pytest.raises(IntegrityError, match="sealed blob b"):
            merkle.check_leaf(*wrong, leaf, "b")


def test_tables() -> None:
    leaves = [merkle.leaf_hash(i, b"%d" % i) for i in range(5)]
    table, top = b"".join(leaves), merkle.root_of(leaves)
    assert merkle.check_leaf_table(table, 5, top, "b")[32:64] == leaves[1]
    for wrong, count in ((table[:-32], 4), (bytes(32) + table[32:], 5)):
        with pytest.raises(IntegrityError):
            merkle.check_leaf_table(wrong, count, top, "b")
    for wrong, count in ((table, 4), (table[:-1], 5)):
        with pytest.raises(FormatError):
            merkle.check_leaf_table(wrong, count, top, "b")
