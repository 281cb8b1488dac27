"""What is to be mounted, as plain values: a worker opens the image anew from them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Final

import msgspec

from lamina.linux.memory import forbid_core_dumps
from lamina.linux.process import start_time_ticks
from lamina.opening.request import OpenRequest
from lamina.serve.readahead import LAZY_KIB

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.opening.open_image import Indexer

OF_THE_MOUNT: Final = (
    "mountpoint",
    "device",
    "options",
    "as_lower",
    "readahead_kib",
    "lease",
    "early",
)
"""What is said of where and how to mount; all else is about which image, and how to open it."""


class Lease(msgspec.Struct, frozen=True):
    """A process that a mount is for: when it has ended, the mount is taken away.

    ``start_ticks`` are those of :func:`lamina.linux.process.start_time_ticks`.
    """

    pid: int
    start_ticks: int

    @classmethod
    def of_this_process(cls) -> Lease:
        """Return that of the process that calls."""
        return cls(os.getpid(), start_time_ticks(os.getpid()) or 0)

    def open(self) -> int | None:
        """Return a pidfd of the process; None if it has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if start_time_ticks(self.pid) == self.start_ticks:
            return fd
        os.close(fd)
        return None


class MountSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One mount: all that a serving process needs, as JSON.

    ``image`` may have secrets, so a spec is kept in memory only; it is what
    :func:`lamina.opening.request.for_another_process` makes.  With ``as_lower`` the mount is fit to
    be the lower folder of an overlay (:mod:`lamina.serve.lower_metadata`).  ``readahead_kib``
    bounds what the kernel reads ahead of incomplete blobs, where it mounts them itself.  While the
    mount needs a service, that unmounts it, lazily, at the end of its ``lease``.  If it may be
    ``early``, the metadata layer is not waited for (:mod:`lamina.opening.early_image`).
    """

    image: OpenRequest
    mountpoint: str
    device: str = "auto"
    options: tuple[str, ...] = ()
    complete: bool = False
    limit_rate: float | None = None
    as_lower: bool = False
    readahead_kib: int = LAZY_KIB
    lease: Lease | None = None
    early: bool = True

    def pinned_to(self, version: str | None) -> MountSpec:
        """Return the same mount of the version that was opened."""
        image = msgspec.structs.replace(self.image, pinned=version)
        return msgspec.structs.replace(self, image=image)

    def indexed_by(self, indexer: Indexer | None) -> MountSpec:
        """Return the same mount for a process that cannot index: if the image has to be indexed,
        that is done here.  Raises what opening and indexing raise.
        """
        if indexer is None or self.image.index != "always":
            return self
        from lamina.opening.open_image import index_first

        return msgspec.structs.replace(self, image=index_first(self.image, indexer))

    def opening_key(self) -> bytes:
        """Return the same bytes for mounts that one opened image can serve."""
        fields = msgspec.to_builtins(self)
        for name in OF_THE_MOUNT:
            del fields[name]
        if self.image.client.login_socket is not None:
            # Of a pull: the next one's is another, and names of files are made of this.
            fields["image"]["client"] |= {"username": None, "password": None}
        return json.dumps(fields, sort_keys=True).encode()


def open_spec(spec: MountSpec) -> LazyImage:
    """Open the image, and fetch all of it if that is asked for.  Raises what opening raises."""
    if spec.image.has_secrets:
        forbid_core_dumps()
    image = open_reference(spec)
    if spec.complete:
        from lamina.content.residency import BackgroundFill

        image.close_with(BackgroundFill(image, bytes_per_s=spec.limit_rate))
    return image


def open_reference(spec: MountSpec) -> LazyImage:
    """Open by reference; once it is pinned by its digest, no registry is asked for what is in the
    store, and the signatures that are kept there are what the policy is asked about.  It may be
    used before its metadata layer has come, unless that is wanted anyway.
    """
    from lamina.opening.open_image import open_image
    from lamina.serve.devices import needs_metadata_file

    early = spec.early and not spec.complete
    return open_image(spec.image, early=early and not needs_metadata_file(spec.device))
