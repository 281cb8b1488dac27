"""An image that is used before its metadata layer has come: by pages of its bootstrap, and of its
blobs, that came ahead and are proven.

Whatever is not among them is read of the whole image, which is opened for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

from lamina.content.image_blobs import ImageBlobs
from lamina.content.lazy_image import LazyImage, Origin

if TYPE_CHECKING:
    from lamina.content.lazy_blob import LazyBlob
    from lamina.content.start_pages import StartPages
    from lamina.content.whole_image import WholeImage
    from lamina.erofs.layout import BlobEntry
    from lamina.erofs.partial import PartialBootstrap
    from lamina.image.served_blob import ReadableBlob
    from lamina.source.fetcher import Fetcher

T = TypeVar("T")


class EarlyBlob:
    """A blob of which pages come ahead, and the rest from the whole image."""

    def __init__(
        self, entry: BlobEntry, pages: StartPages, whole: WholeImage, folder: Path
    ) -> None:
        """*folder* is where the store has its blobs."""
        self.path = folder / entry.blob_id
        self.size_bytes = entry.uncompressed_size
        self._id, self._index = entry.blob_id, entry.index
        self._pages, self._whole = pages, whole

    def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill *buffer* from *offset* on, and return the count, less only at the end."""
        view = memoryview(buffer).cast("B")
        view = view[: max(min(len(view), self.size_bytes - offset), 0)]
        self._whole.check()
        if self._whole.opened is None and self._pages.read_into(self._id, offset, view):
            return len(view)
        return self._whole.get().blobs[self._index].read_into(offset, view)

    def read_cached(self, offset: int, view: memoryview, /) -> bool:
        """Fill *view* if all of it is ready, and in memory; if not, its content means nothing."""
        opened = self._whole.opened
        return opened is not None and opened.blobs[self._index].read_cached(offset, view)


class EarlyBlobs(ImageBlobs):
    """The blobs of an image that is not open as a whole."""

    def __init__(
        self, bootstrap: PartialBootstrap, pages: StartPages, whole: WholeImage, folder: Path
    ) -> None:
        self._whole = whole
        self._pages = pages
        self._served = [EarlyBlob(entry, pages, whole, folder) for entry in bootstrap.blobs]

    def __len__(self) -> int:
        return len(self._served)

    @overload
    def __getitem__(self, index: int) -> LazyBlob: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LazyBlob]: ...

    def __getitem__(self, index: int | slice) -> LazyBlob | Sequence[LazyBlob]:
        """Return a blob of the whole image; raises what opening that raises."""
        return self._whole.get().blobs[index]

    @property
    def readable(self) -> Sequence[ReadableBlob]:
        """What is read of a blob, without opening the whole image for what came ahead."""
        return self._served

    @property
    def fetcher(self) -> Fetcher:
        """Where all blobs come from."""
        return self._whole.get().blobs.fetcher

    @property
    def opened(self) -> Sequence[LazyBlob]:
        """Those of which something was asked."""
        whole = self._whole.opened
        return [] if whole is None else whole.blobs.opened

    def at_hand(self, index: int) -> LazyBlob | None:
        """Return a blob if nothing has to be fetched and nobody waited for to open it."""
        whole = self._whole.opened
        return None if whole is None else whole.blobs.at_hand(index)

    @property
    def early(self) -> StartPages:
        """What comes ahead of the readers."""
        return self._pages

    def expect(self, pages: StartPages) -> None:
        """Nothing to do: they do already."""

    def run_parallel(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call *work* for every item with the threads that fetch; raises what the first raises."""
        self._whole.get().blobs.run_parallel(work, items)


class EarlyImage(LazyImage):
    """See the module."""

    def __init__(
        self,
        bootstrap: PartialBootstrap,
        blobs: EarlyBlobs,
        whole: WholeImage,
        *,
        origin: Origin,
        resources: ExitStack,
    ) -> None:
        """Own *whole*, and *resources*, which are closed behind it."""
        super().__init__(bootstrap, blobs, origin=origin, resources=resources)
        self._whole = whole
        self.close_with(whole)

    @property
    def is_early(self) -> bool:
        """Whether the metadata layer has not come."""
        return self._whole.opened is None

    def check(self) -> None:
        """Raise what is wrong with the image, if that is known."""
        self._whole.check()

    @property
    def bootstrap_path(self) -> Path:
        """The bootstrap as a file, for the kernel; waits for the whole image."""
        return self._whole.get().bootstrap_path
