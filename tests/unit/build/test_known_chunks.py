"""The table of known chunks does as a dictionary does."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.build import known_chunks
from lamina.build.known_chunks import KnownChunks


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), max_size=400))
def test_as_a_dictionary(numbers: list[int]) -> None:
    known_chunks.FIRST_PLACES, before = 4, known_chunks.FIRST_PLACES
    try:
        known, model = KnownChunks(), dict[bytes, int]()
        for reference, number in enumerate(numbers):
            digest = number.to_bytes(32, "big")
            assert known.find_or_add(digest, reference) == model.setdefault(digest, reference)
            assert len(known) == len(model)
    finally:
        known_chunks.FIRST_PLACES = before
    assert known.digests(0, array("I", range(len(model)))) == b"".join(model)
