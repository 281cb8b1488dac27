"""Device ``fuse``: the whole tree of an image over FUSE, for kernels without file-backed EROFS and
for users who are not root.

Root's mounts are for all users, as permissions in the image say; other users' mounts are for
themselves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from lamina.serve.device import Answering
from lamina.serve.fuse_mount import FuseMount, LazilyOpenedFilesystem
from lamina.serve.fuse_tree import TreeFilesystem, tree_flags
from lamina.serve.lower_metadata import OVERLAY_ATTRIBUTES
from lamina.serve.service.handover import MountHandover
from lamina.serve.service.lazy_open import LazilyOpenedImage

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.serve.mount_job import MountJob


class Fuse:
    """See the module."""

    name = "fuse"
    rank = 2
    needs_root = False
    shares_images = True
    needs_metadata_file = False

    def require(self) -> None:
        """Nothing can be told before."""

    def hold(self, image: LazyImage, owner: str) -> None:
        """Hold nothing: all is asked for."""

    def mount(self, job: MountJob) -> None:
        """Mount the tree."""
        if os.geteuid() == 0:
            job.place_fuse([("allow_other", None), ("default_permissions", None)])
        else:
            job.place_unprivileged_fuse()

    def serve(
        self, mount: MountHandover, image: LazilyOpenedImage, answering: Answering
    ) -> FuseMount:
        """Return what answers for the tree."""
        # Only root's mounts can have the kernel check POSIX ACLs.
        acl = os.geteuid() == 0
        lower = mount.spec.as_lower
        filesystem = LazilyOpenedFilesystem(
            image,
            "lower tree" if lower else "tree",
            tree_flags(acl=acl),
            lambda opened: TreeFilesystem(
                opened, acl=acl, hidden=OVERLAY_ATTRIBUTES if lower else None
            ),
        )
        return FuseMount(mount, image, filesystem, answering.threads)


DEVICE: Final = Fuse()
