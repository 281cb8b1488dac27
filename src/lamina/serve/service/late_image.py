"""An image that a worker opens when it is first asked for something: after a takeover most mounts
are idle, and one that cannot be opened must not keep the others waiting.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from lamina.errors import Error
from lamina.image.native import NativeImage
from lamina.serve.fuse_blob import BlobFilesystem
from lamina.serve.fuse_server import Body, Filesystem
from lamina.serve.fuse_tree import TreeFilesystem, tree_flags
from lamina.serve.service.kept import KeptMount
from lamina.serve.service.spec import MountSpec, open_spec
from lamina.wire import fuse

RETRY_S: Final = 1.0
"""After a failure to open, requests fail for so long without another attempt."""


class LateImage:
    """Threads share it."""

    def __init__(self, spec: MountSpec, image: NativeImage | None = None) -> None:
        """Own ``image`` if it is open already."""
        self.spec = spec
        self._image = image
        self._lock = threading.Lock()
        self._error: Error | None = None
        self._not_before = 0.0

    @property
    def opened(self) -> NativeImage | None:
        """The image, if it is open."""
        return self._image

    def get(self) -> NativeImage:
        """Return the image.  Raises what opening it raises."""
        if self._image is not None:
            return self._image
        with self._lock:
            if self._image is None:
                if self._error is not None and time.monotonic() < self._not_before:
                    raise self._error
                try:
                    self._image = open_spec(self.spec)
                except Error as error:
                    self._error, self._not_before = error, time.monotonic() + RETRY_S
                    raise
            return self._image

    def close(self) -> None:
        """Close the image; may be called again."""
        with self._lock:
            image, self._image = self._image, None
        if image is not None:
            image.close()


class LateFilesystem:
    """What a FUSE connection serves: the blobs of an image, or its tree."""

    def __init__(self, mount: KeptMount, image: LateImage, *, acl: bool) -> None:
        self._blobs = mount.device == "fuse-blob"
        self._acl = acl
        self._image = image
        self._filesystem: Filesystem | None = None
        self.flags = BlobFilesystem.flags if self._blobs else tree_flags(acl=acl)

    def handle(self, request: fuse.Request, scratch: memoryview, /) -> Body:
        """Answer a request; raises what opening the image raises."""
        filesystem = self._filesystem
        if filesystem is None:
            image = self._image.get()
            filesystem = self._filesystem = (
                BlobFilesystem(image.blobs) if self._blobs else TreeFilesystem(image, acl=self._acl)
            )
        return filesystem.handle(request, scratch)

    def forget(self, nodeid: int, lookups: int) -> None:
        """Nothing to do: numbers of nodes are those of the image."""
