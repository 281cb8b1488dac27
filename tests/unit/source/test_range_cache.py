"""Bytes that were fetched lately are not fetched again."""

from __future__ import annotations

import random
import time

import pytest
from tests.support.range_source import RangeSource

from lamina.errors import FetchError
from lamina.source.fetcher import Fetcher
from lamina.source.range_cache import RangeCache
from lamina.source.retry import ONCE

BLOB = random.Random(5).randbytes(100_000)


class Source(RangeSource):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.fails = False

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        self.asked.append((offset, size_bytes))
        if self.fails:
            raise FetchError("down")
        return BLOB[offset : offset + size_bytes]


def reader(source: Source, recent: RangeCache):  # type: ignore[no-untyped-def]
    fetcher = Fetcher([source], policy=ONCE)

    def read(offset: int, size: int) -> int:
        found = recent.fetch(fetcher, "b", offset, size, time.monotonic() + 9)
        assert found.data == BLOB[offset : offset + size]
        assert found.source is source
        return found.fetched_bytes

    return read


def test_only_what_is_missing_is_fetched() -> None:
    source = Source()
    read = reader(source, RangeCache())
    assert read(100, 50) == 50
    assert read(100, 80) == 30
    assert read(120, 20) == 0
    assert read(60, 60) == 40
    assert read(300, 10) == 10
    assert read(150, 155) == 120
    assert source.asked == [(100, 50), (150, 30), (60, 40), (300, 10), (180, 120)]


@pytest.mark.parametrize("limit", [1, 3000, 1 << 20])
def test_any_order_gives_the_right_bytes(limit: int) -> None:
    dice = random.Random(limit)
    source, recent = Source(), RangeCache(limit)
    read = reader(source, recent)
    for _ in range(400):
        offset = dice.randrange(len(BLOB) - 1)
        read(offset, min(dice.randint(1, 2000), len(BLOB) - offset))
        assert sum(len(extent.data) for extent in recent._extents) <= limit


def test_what_was_forgotten_is_fetched_again() -> None:
    source, recent = Source(), RangeCache()
    read = reader(source, recent)
    read(0, 10)
    recent.forget()
    assert read(0, 10) == 10


def test_a_failure_keeps_nothing() -> None:
    source, recent = Source(), RangeCache()
    read = reader(source, recent)
    read(0, 10)
    source.fails = True
    with pytest.raises(FetchError):
        read(0, 20)
    assert read(0, 10) == 0
