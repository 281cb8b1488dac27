"""The bootstrap of an image as a file that a kernel asks for page by page."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from lamina.content.lazy_image import LazyImage
from lamina.content.read_log import METADATA
from lamina.erofs.hidden_attributes import without_attributes
from lamina.erofs.partial import PAGE_BYTES, PartialBootstrap
from lamina.errors import FormatError

LOG: Final = logging.getLogger("lamina")

NAME: Final = "image.boot"


class MetadataFile:
    """What a mount of an image has for a bootstrap.  Threads share it.

    What came ahead is shown as soon as it is asked for, all else from the whole, without the
    attributes that are to be hidden.  Where what came ahead may have one of these, only the whole
    is shown.
    """

    path = Path(NAME)

    def __init__(self, image: LazyImage, hidden: bytes | None = None) -> None:
        """*hidden* is how the full names of attributes begin that the kernel must not see."""
        self._image = image
        self._hidden = hidden
        self._lock = threading.Lock()
        self._whole: memoryview | None = None
        self._problem: FormatError | None = None
        self.size_bytes = image.bootstrap.size_bytes
        self._early = None
        if isinstance(image.bootstrap, PartialBootstrap) and not _has(image.bootstrap, hidden):
            self._early = image.bootstrap

    def read_into(self, offset: int, buffer: bytearray | memoryview, /) -> int:
        """Fill *buffer* from *offset* on, and return the count, less only at the end.

        Raises what opening the whole image raises, and FormatError if a hidden attribute was shown
        in part.
        """
        self._image.check()
        if self._problem is not None:
            raise self._problem
        size = max(min(len(buffer), self.size_bytes - offset), 0)
        if self._image.metadata_reads is not None:
            self._image.metadata_reads.note(METADATA, offset, size)
        early = self._early
        if self._whole is None and early is not None and early.has(offset, size):
            buffer[:size] = early.early(offset, size)
        else:
            buffer[:size] = self._all()[offset : offset + size]
        return size

    def read_cached(self, _offset: int, _view: memoryview, /) -> bool:
        """Return False: what the kernel has read of it stays in memory."""
        return False

    def _all(self) -> memoryview:
        with self._lock:
            if self._whole is None:
                try:
                    self._whole = self._shown()
                except FormatError as error:
                    # Nor is more shown of what came ahead.
                    self._problem = error
                    origin = self._image.origin
                    name = "an image" if origin is None else origin.reference
                    LOG.warning("nothing more is read of %s: %s", name, error)
                    raise
            return self._whole

    def _shown(self) -> memoryview:
        view = self._image.bootstrap.view
        changed = (
            None
            if self._hidden is None
            else without_attributes(self._image.bootstrap, self._hidden)
        )
        if changed is None:
            return view
        shown = memoryview(changed)
        for page in () if self._early is None else self._early.here:
            start = page * PAGE_BYTES
            if shown[start : start + PAGE_BYTES] != view[start : start + PAGE_BYTES]:
                raise FormatError(
                    "the image has an attribute for overlayfs in what was shown of it"
                )
        return shown


def _has(bootstrap: PartialBootstrap, hidden: bytes | None) -> bool:
    """Tell whether the end of a name that begins so is in what came ahead."""
    if hidden is None:
        return False
    text = hidden.split(b".", 1)[1]
    pages = sorted(bootstrap.here)
    joined = b""
    for before, page in zip([-1, *pages], pages, strict=False):
        data = bytes(bootstrap.early(page * PAGE_BYTES, PAGE_BYTES))
        joined = (joined[-len(text) :] if page == before + 1 else b"") + data
        if text in joined:
            return True
    return False
