"""Blobs that a test has opened by itself, as those of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lamina.content.image_blobs import ImageBlobs, T
from lamina.content.lazy_blob import LazyBlob
from lamina.content.start_pages import StartPages
from lamina.source.fetcher import Fetcher


class OpenedBlobs(ImageBlobs):
    """They stay the caller's."""

    def __init__(self, blobs: Sequence[LazyBlob] = (), early: StartPages | None = None) -> None:
        self._blobs = list(blobs)
        self._early = early

    @property
    def fetcher(self) -> Fetcher:
        return self._blobs[0].source

    @property
    def opened(self) -> Sequence[LazyBlob]:
        return self._blobs

    def at_hand(self, index: int) -> LazyBlob:
        return self._blobs[index]

    @property
    def early(self) -> StartPages | None:
        return self._early

    def expect(self, pages: StartPages) -> None:
        self._early = pages

    def run_parallel(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        for item in items:
            work(item)

    def __len__(self) -> int:
        return len(self._blobs)

    def __getitem__(self, index):
        return self._blobs[index]
