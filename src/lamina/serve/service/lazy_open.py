"""An image that a worker opens when it is first asked for something: after a takeover most mounts
are idle, and one that cannot be opened must not keep the others waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from lamina.content.lazy_image import LazyImage
from lamina.errors import Error
from lamina.serve.fuse_server import Filesystem
from lamina.serve.service.spec import MountSpec, open_spec

RETRY_S: Final = 1.0
"""After a failure to open, requests fail for so long without another attempt."""


class LazilyOpenedImage:
    """An image and what is served of it.  Threads share it."""

    def __init__(self, spec: MountSpec, image: LazyImage | None = None) -> None:
        """Own ``image`` if it is open already."""
        self.spec = spec
        self._image = image
        self._lock = threading.Lock()
        self._error: Error | None = None
        self._not_before = 0.0
        self._filesystems: dict[str, Filesystem] = {}

    @property
    def opened(self) -> LazyImage | None:
        """The image, if it is open."""
        return self._image

    def adopt(self, image: LazyImage) -> bool:
        """Own ``image`` from now on, unless there is one already; return whether that is so."""
        with self._lock:
            if self._image is None:
                self._image = image
                return True
            return False

    def is_same(self, image: LazyImage) -> bool:
        """Whether the one that is open has the same metadata, and so the same blobs."""
        opened = self._image
        if opened is None:
            return False
        digest = _manifest_digest(image)
        if digest is not None and digest == _manifest_digest(opened):
            # Of one that is used early, nobody waits for the metadata.
            return True
        return opened.bootstrap_path == image.bootstrap_path

    def get(self) -> LazyImage:
        """Return the image.  Raises what opening it raises."""
        if self._image is not None:
            return self._image
        with self._lock:
            if self._image is None:
                if self._error is not None and time.monotonic() < self._not_before:
                    # Without what raised it before, which holds the buffers of each reader.
                    raise self._error.with_traceback(None)
                try:
                    self._image = open_spec(self.spec)
                except Error as error:
                    self._error, self._not_before = error, time.monotonic() + RETRY_S
                    raise
            return self._image

    def filesystem(self, kind: str, make: Callable[[LazyImage], Filesystem]) -> Filesystem:
        """Return what FUSE connections of one kind show of the image, made if need be.

        Raises what opening the image raises.
        """
        image = self.get()
        with self._lock:
            if kind not in self._filesystems:
                self._filesystems[kind] = make(image)
            return self._filesystems[kind]

    def close(self) -> None:
        """Close the image; may be called again."""
        with self._lock:
            image, self._image = self._image, None
            self._filesystems.clear()
        if image is not None:
            image.close()


def _manifest_digest(image: LazyImage) -> str | None:
    reference = None if image.origin is None else image.origin.reference
    return None if reference is None else reference.digest
