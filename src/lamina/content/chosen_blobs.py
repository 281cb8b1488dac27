"""Some of the blobs of an image, as those of another tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar, overload

from lamina.content.image_blobs import ImageBlobs

if TYPE_CHECKING:
    from lamina.content.lazy_blob import LazyBlob
    from lamina.content.start_pages import StartPages
    from lamina.source.fetcher import Fetcher

T = TypeVar("T")


class ChosenBlobs(ImageBlobs):
    """The blobs of the given numbers, which stay the image's."""

    def __init__(self, blobs: ImageBlobs, numbers: Sequence[int]) -> None:
        self._blobs = blobs
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> LazyBlob: ...

    @overload
    def __getitem__(self, index: slice) -> list[LazyBlob]: ...

    def __getitem__(self, index: int | slice) -> LazyBlob | list[LazyBlob]:
        """Return a blob, opened; raises what its source raises if the chunk table is not here."""
        if isinstance(index, slice):
            return [self._blobs[number] for number in self._numbers[index]]
        return self._blobs[self._numbers[index]]

    @property
    def fetcher(self) -> Fetcher:
        """Where all blobs come from."""
        return self._blobs.fetcher

    @property
    def opened(self) -> Sequence[LazyBlob]:
        """Those of which something was asked; of them all that the image has."""
        return self._blobs.opened

    def at_hand(self, index: int) -> LazyBlob | None:
        """Return a blob if nothing has to be fetched and nobody waited for to open it."""
        return self._blobs.at_hand(self._numbers[index])

    @property
    def early(self) -> StartPages | None:
        """Return None: pages come ahead of whoever reads the image."""
        return None

    def expect(self, pages: StartPages) -> None:
        """Do nothing, see :attr:`early`."""

    def run_parallel(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call *work* for every item with the threads that fetch; raises what the first raises."""
        self._blobs.run_parallel(work, items)
