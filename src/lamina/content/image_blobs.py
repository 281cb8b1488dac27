"""The seam between an image's tree and the blobs that its files are in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lamina.content.lazy_blob import LazyBlob
    from lamina.content.start_pages import StartPages
    from lamina.image.served_blob import ReadableBlob
    from lamina.source.fetcher import Fetcher

T = TypeVar("T")


class ImageBlobs(Sequence["LazyBlob"]):
    """The blobs of an image, in the order of its blob table.  Threads share it."""

    @property
    def readable(self) -> Sequence[ReadableBlob]:
        """What is read of each, whether it is open or not."""
        return self

    @property
    @abstractmethod
    def fetcher(self) -> Fetcher:
        """Where all blobs come from."""

    @property
    @abstractmethod
    def opened(self) -> Sequence[LazyBlob]:
        """Those of which something was asked."""

    @abstractmethod
    def at_hand(self, index: int) -> LazyBlob | None:
        """Return a blob if nothing has to be fetched and nobody waited for to open it."""

    @property
    @abstractmethod
    def early(self) -> StartPages | None:
        """What comes ahead of the readers; None if nothing does."""

    @abstractmethod
    def expect(self, pages: StartPages) -> None:
        """Let the blobs that are opened from now on have *pages* that come ahead."""

    @abstractmethod
    def run_parallel(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call *work* for every item with the threads that fetch; raises what the first raises."""
