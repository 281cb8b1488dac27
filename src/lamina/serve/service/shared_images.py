"""The images that a worker has open; mounts of one image share its tables and descriptors."""

from __future__ import annotations

import threading

import msgspec

from lamina.content.lazy_image import LazyImage
from lamina.serve.devices import find_device
from lamina.serve.service.lazy_open import LazilyOpenedImage
from lamina.serve.service.spec import MountSpec, open_spec


class SharedImages:
    """Gives out :class:`LazilyOpenedImage`, and closes each when the last of its mounts has given
    it back.

    Those of some devices are nobody else's.  Threads share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: dict[bytes, LazilyOpenedImage] = {}
        self._users: dict[LazilyOpenedImage, int] = {}

    def open(self, spec: MountSpec) -> LazilyOpenedImage:
        """Open an image by its reference, which may mean another one than before.

        Raises what opening raises.
        """
        image = open_spec(spec)
        pinned = spec.pinned_to(pinned_reference(image))
        late, kept = self._take(pinned, image)
        if not kept:
            image.close()
        return late

    def get(self, spec: MountSpec) -> LazilyOpenedImage:
        """Return the image of a mount that another worker has served, which need not be open."""
        return self._take(spec, None)[0]

    def _take(self, spec: MountSpec, image: LazyImage | None) -> tuple[LazilyOpenedImage, bool]:
        """Return the image to use, and whether ``image`` has become part of it."""
        shared = find_device(spec.device).shares_images
        with self._lock:
            late = self._images.get(_key(spec)) if shared else None
            kept = late is None
            if late is not None and image is not None:
                kept = late.adopt(image)
                if not kept and not late.is_same(image):
                    late = None
                    kept = True
            if late is None:
                late = LazilyOpenedImage(spec, image)
                if shared:
                    self._images[_key(spec)] = late
            self._users[late] = self._users.get(late, 0) + 1
            return late, kept

    def give_back(self, late: LazilyOpenedImage) -> None:
        """End one use."""
        with self._lock:
            self._users[late] -= 1
            if self._users[late]:
                return
            del self._users[late]
            key = _key(late.spec)
            if self._images.get(key) is late:
                del self._images[key]
        late.close()


def pinned_reference(image: LazyImage) -> str | None:
    """Return the reference with the digest by which the image is opened again, None if it has
    none.
    """
    return None if image.origin is None else image.origin.pinned


def _key(spec: MountSpec) -> bytes:
    # What was asked for has become the digest; another name may have led there.
    if spec.image.pinned is not None:
        image = msgspec.structs.replace(spec.image, reference="")
        spec = msgspec.structs.replace(spec, image=image)
    return spec.opening_key()
