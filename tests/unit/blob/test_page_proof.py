"""Pages are proven by the digest of their chunk alone, which the ``blake3`` wheel makes."""

import os

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.blob.page_proof import (
    PAGE_BYTES,
    SIBLING_BYTES,
    ChunkPages,
    make_siblings,
    page_count,
    prove,
    require_numpy,
    sibling_count,
)
from lamina.errors import UnsupportedError

SIZES = st.one_of(
    st.integers(1, 9 * PAGE_BYTES),
    st.integers(1, 20).map(lambda pages: pages * PAGE_BYTES),
    st.integers(1, 70).map(lambda leaves: leaves * 1024),
)


def chunk_pages(chunk: bytes, pages: list[int]) -> ChunkPages:
    padded = chunk.ljust(page_count(len(chunk)) * PAGE_BYTES, b"\0")
    data = b"".join(padded[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] for page in pages)
    [siblings] = make_siblings([(memoryview(chunk), pages)])
    digest = blake3(chunk).digest()
    return ChunkPages(digest, len(chunk), pages, memoryview(data), memoryview(siblings))


@st.composite
def proven_pages(draw: st.DrawFn) -> tuple[bytes, ChunkPages]:
    size = draw(SIZES)
    seed = draw(st.binary(min_size=1, max_size=8))
    chunk = blake3(seed).digest(length=size)
    count = page_count(size)
    pages = draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count))
    return chunk, chunk_pages(chunk, sorted(pages))


@settings(max_examples=25, deadline=None)
@given(proven_pages())
def test_right_pages_are_proven(found: tuple[bytes, ChunkPages]) -> None:
    _, pages = found
    assert len(pages.siblings) == SIBLING_BYTES * sibling_count(pages.size_bytes, pages.pages)
    assert prove([pages]) == [True]


@settings(max_examples=25, deadline=None)
@given(proven_pages(), st.data())
def test_any_changed_byte_is_noticed(found: tuple[bytes, ChunkPages], data: st.DataObject) -> None:
    _, right = found
    where = data.draw(st.sampled_from(["data", "siblings"] if right.siblings else ["data"]))
    changed = bytearray(getattr(right, where))
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    assert prove([right._replace(**{where: memoryview(changed)})]) == [False]


@settings(max_examples=25, deadline=None)
@given(proven_pages(), st.data())
def test_pages_at_other_places_are_refused(
    found: tuple[bytes, ChunkPages], data: st.DataObject
) -> None:
    chunk, right = found
    count = page_count(len(chunk))
    others = st.lists(st.integers(-1, count + 1), min_size=1, max_size=count + 1)
    pages = data.draw(others.filter(lambda pages: pages != list(right.pages)))
    assert prove([right._replace(pages=pages)]) == [False]


@settings(max_examples=25, deadline=None)
@given(proven_pages(), st.integers(-5000, 5000).filter(bool))
def test_a_chunk_of_another_size_is_refused(found: tuple[bytes, ChunkPages], by: int) -> None:
    _, right = found
    size = right.size_bytes + by
    if size <= 0 or right.pages[-1] != page_count(right.size_bytes) - 1:
        # What is behind the last page that is there is in the value of a sibling. The size of a
        # chunk is in the metadata, beside its digest.
        return
    assert prove([right._replace(size_bytes=size)]) == [False]


@pytest.mark.parametrize("change", [b"", b"\0" * 32])
def test_siblings_that_are_too_few_or_too_many_are_refused(change: bytes) -> None:
    chunk = os.urandom(40 * PAGE_BYTES)
    right = chunk_pages(chunk, [3, 17])
    wrong = memoryview(bytes(right.siblings) + change) if change else right.siblings[32:]
    assert prove([right._replace(siblings=wrong)]) == [False]


def test_what_is_behind_the_end_of_a_chunk_must_be_zeros() -> None:
    right = chunk_pages(os.urandom(2 * PAGE_BYTES + 100), [2])
    data = bytearray(right.data)
    data[-1] = 1
    assert prove([right, right._replace(data=memoryview(data))]) == [True, False]


def test_chunks_are_proven_together_and_judged_apart() -> None:
    good = [chunk_pages(os.urandom(size), [0]) for size in (5000, 131072, 12288, 99)]
    bad = good[1]._replace(digest=bytes(32))
    assert prove([good[0], bad, *good[1:]]) == [True, False, True, True, True]
    assert prove([]) == []


def test_a_proof_of_another_chunk_is_refused() -> None:
    one, other = (chunk_pages(os.urandom(131072), [1, 2, 9]) for _ in range(2))
    assert prove([one._replace(siblings=other.siblings)]) == [False]
    assert prove([one._replace(digest=other.digest)]) == [False]


def test_without_numpy_whole_chunks_are_proven_still(monkeypatch: pytest.MonkeyPatch) -> None:
    part = chunk_pages(os.urandom(131072), [1])
    whole = chunk_pages(os.urandom(8192), [0, 1])
    monkeypatch.setitem(__import__("sys").modules, "lamina.codec.blake3_tree", None)
    assert prove([whole]) == [True]
    with pytest.raises(UnsupportedError, match="numpy") as caught:
        require_numpy()
    assert "lamina[start]" in (caught.value.hint or "")
    with pytest.raises(UnsupportedError):
        prove([part])
