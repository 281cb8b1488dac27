"""A source that ignores ranges now and then is not given up for what it did before."""

from __future__ import annotations

import io

import pytest
from tests.support.range_source import RangeSource

from lamina.errors import FetchError
from lamina.source.blob_source import RangesIgnoredError
from lamina.source.reader_priority import ReaderPriority
from lamina.source.sequential_reads import MOST_IGNORED, SequentialReads

SIZE = 10


class Whole(RangeSource):
    """A source that can send a blob whole."""

    name, can_stream = "whole", True

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        raise AssertionError((blob_id, offset, size_bytes))

    def open_sequential(self, _blob_id: str, size_bytes: int) -> io.BytesIO:
        return io.BytesIO(bytes(size_bytes))


def ignored() -> None:
    raise RangesIgnoredError("all of it")


def test_what_was_ignored_is_forgotten_with_the_next_range() -> None:
    reads, source = SequentialReads(ReaderPriority(), settle_s=0.0), Whole()
    reads.blob_sizes = {"blob": SIZE}
    what = ("blob", 0, memoryview(bytearray(SIZE)))
    for _ in range(3):
        assert reads.begin(source, "blob")
        reads.wait()
        for _ in range(MOST_IGNORED - 1):
            with pytest.raises(FetchError) as told:
                reads.ask(source, what, 10.0, ignored)
            assert told.value.transient
        assert reads.ask(source, what, 10.0, lambda: None), "by a range"
    reads.begin(source, "blob")
    reads.wait()
    for _ in range(MOST_IGNORED):
        with pytest.raises(FetchError):
            reads.ask(source, what, 10.0, ignored)
    assert not reads.begin(source, "blob"), "one that always does is given up"
    reads.close()
