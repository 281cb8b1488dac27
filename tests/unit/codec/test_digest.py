from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.codec.crc32c import crc32c
from lamina.codec.digest import (
    KEPT_BYTES,
    KEPT_MOST_BYTES,
    Digester,
    digest,
    hasher,
    keeping_hasher,
)


def test_known_answers() -> None:
    # The BLAKE3 specification's value for empty input; FIPS 180-4's for "abc".
    assert digest(Digester.BLAKE3, b"").hex() == (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )
    assert digest(Digester.SHA256, b"abc").hex() == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@given(st.binary(max_size=3000))
def test_sha256_is_that_of_hashlib_for_any_buffer(data: bytes) -> None:
    expected = hashlib.sha256(data).digest()
    assert digest(Digester.SHA256, memoryview(bytearray(data))) == expected
    assert digest(Digester.BLAKE3, memoryview(data)) == digest(Digester.BLAKE3, data)


@pytest.mark.parametrize("kind", Digester)
def test_digests_of_data_in_small_updates_are_the_same(kind: Digester) -> None:
    data = bytes(range(256)) * 40
    borders = (0, KEPT_BYTES, 2 * KEPT_BYTES, 3 * KEPT_BYTES, KEPT_MOST_BYTES)
    for size in [border + by for border in borders for by in (-1, 0, 1) if border + by >= 0]:
        part = memoryview(data)[:size]
        assert keeping_hasher(kind)(part).digest() == hasher(kind)(part).digest()
    state = keeping_hasher(kind)()
    state.update(data)
    assert state.digest() == digest(kind, data)


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    # RFC 3720 appendix B.4: 32 bytes of zeros, of ones, ascending.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crc32c_continues(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)
