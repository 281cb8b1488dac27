"""Three sources, of which one fails, one lies and one is slow: every byte is right all the same."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from tests.support.native_images import (
    MemorySource,
    build_image,
    image_files,
    open_bootstrap,
    some_bytes,
)

from lamina.errors import FetchError
from lamina.source.fetcher import SLOW_S, Fetcher
from lamina.source.health import LONGEST_PENALTY_S
from lamina.source.retry import RetryPolicy

SIZE = 20_000
FILES = {b"file-%02d" % number: some_bytes(SIZE, number) for number in range(24)}


class Clock:
    """The real one, which can be put forward."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s

    def sleep(self, pause_s: float) -> None:
        self.ahead_s += pause_s


class Source(MemorySource):
    """One that can fail, lie and be slow, and counts who asks."""

    def __init__(self, name: str, clock: Clock, *images) -> None:
        super().__init__(*images)
        self.name = name
        self.clock = clock
        self.ill = True

    def read_range_within(
        self, blob_id: str, offset: int, size_bytes: int, timeout_s: float
    ) -> bytes:
        data = super().read_range(blob_id, offset, size_bytes)
        if self.ill and self.name == "fails":
            raise FetchError("it fails")
        if self.ill and self.name == "is slow":
            needs_s = 2 * SLOW_S
            self.clock.ahead_s += min(needs_s, timeout_s)
            if timeout_s < needs_s:
                raise FetchError("it did not answer in time")
        if self.ill and self.name == "lies":
            return bytes(byte ^ 1 for byte in data)
        return data


def test_they_are_passed_over_and_asked_again_later(tmp_path: Path) -> None:
    built = build_image(FILES, chunk_size=65536)
    clock = Clock()
    three = [Source(name, clock, built) for name in ("fails", "lies", "is slow")]
    fails, lies, slow = three
    policy = RetryPolicy(deadline_s=10_000.0)
    fetcher = Fetcher(three, policy=policy, clock=clock, sleep=clock.sleep)
    boot = image_files(tmp_path / "image", built)
    with ExitStack() as stack:
        image = stack.enter_context(open_bootstrap(boot, fetcher, store=tmp_path / "store"))
        names = iter(FILES)

        def read() -> None:
            name = next(names)
            assert image.pread(image.stat(b"/" + name), 0, SIZE) == FILES[name]

        for _ in range(8):
            read()
        assert fails.requests
        assert lies.requests
        assert slow.requests, "the right bytes come from nobody else"

        slow.ill = False
        clock.ahead_s += LONGEST_PENALTY_S
        read()
        asked = len(fails.requests), len(lies.requests)
        for _ in range(6):
            read()
        assert (len(fails.requests), len(lies.requests)) == asked, "they are passed over"

        fails.ill = False
        clock.ahead_s += LONGEST_PENALTY_S
        before = len(slow.requests)
        for _ in range(6):
            read()
        assert len(fails.requests) == asked[0] + 6, "it is asked again, and first"
        assert len(slow.requests) == before


def test_a_slow_one_is_not_waited_for_while_there_is_another(tmp_path: Path) -> None:
    built = build_image(FILES, chunk_size=65536)
    clock = Clock()
    slow, good = Source("is slow", clock, built), Source("good", clock, built)
    fetcher = Fetcher([slow, good], clock=clock, sleep=clock.sleep)
    begin_s = clock()
    for offset in range(20):
        data = bytes(fetcher.read_range(built.blob_id, offset, 10))
        assert data == built.blob[offset : offset + 10]
    assert len(slow.requests) == 1, "it is asked for what another has"
    assert clock() - begin_s < SLOW_S + 5, "much longer than one try takes"


def test_one_that_delivers_late_is_passed_over_too() -> None:
    built = build_image(FILES, chunk_size=65536)
    clock = Clock()

    class Late(MemorySource):
        def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
            clock.ahead_s += SLOW_S + 1
            return super().read_range(blob_id, offset, size_bytes)

    late, good = Late(built), MemorySource(built)
    fetcher = Fetcher([late, good], clock=clock, sleep=clock.sleep)
    for offset in range(3):
        fetcher.read_range(built.blob_id, offset, 10)
    assert (len(late.requests), len(good.requests)) == (1, 2)
