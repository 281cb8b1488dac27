"""Whether all of an image can be on this node, and whether it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from lamina.content.lazy_image import LazyImage
from lamina.errors import StoreError

PREDICTABLE: Final = frozenset(("ext2", "ext3", "ext4", "xfs", "tmpfs"))
"""File systems on which a file takes its blocks, by their names in mountinfo (proc(5)): others may
compress, or keep the same blocks once."""


class EvictedError(StoreError):
    """Parts of an image are not here any more although they have been."""


def check_room(image: LazyImage) -> None:
    """Raise StoreError if all of an image cannot be in the store at one time.

    Where that cannot be known beforehand, nothing is raised.
    """
    if all(blob.complete for blob in image.blobs):
        return
    space = image.blobs[0].cache.space
    if not _is_predictable(space.root):
        return
    names = [blob.cache.path.stem for blob in image.blobs]
    if space.budget_bytes is not None:
        here = sum(os.fstat(blob.fd).st_blocks * 512 for blob in image.blobs)
        needed = here + sum(blob.missing_bytes(elsewhere=True) for blob in image.blobs)
        left = space.budget_bytes - space.kept_bytes(names)
        if needed > left:
            raise StoreError(
                f"the image takes {needed} bytes in the node store {space.root}, whose budget of "
                f"{space.budget_bytes} bytes has {max(left, 0)} for it",
                hint="raise --store-budget, or unmount or unpin an image",
            )
    missing = sum(blob.missing_bytes() for blob in image.blobs)
    status = os.statvfs(space.root)
    free = status.f_bavail * status.f_frsize + space.evictable_bytes(names)
    if missing > free:
        raise StoreError(
            f"the image takes {missing} bytes more in the node store {space.root}, whose disk has "
            f"{free} for it",
            hint="free some space, or choose another place with --store",
        )


def _is_predictable(root: Path) -> bool:
    if sys.platform != "linux":
        return False
    from lamina.linux.mount_table import read_mount_table

    number = root.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return any(
        entry.device == device and entry.filesystem in PREDICTABLE for entry in read_mount_table()
    )


def flush_complete(image: LazyImage) -> None:
    """Make an image that is here outlive a power cut; EvictedError if some of it is not here."""
    gone = 0
    for blob in image.blobs:
        if blob.complete:
            blob.cache.flush()
        else:
            gone += blob.cache.chunk_count - blob.cache.ready_count
    if gone:
        raise EvictedError(
            f"{gone} chunks of the image were evicted again while the rest arrived",
            hint="raise --store-budget, or pull while less is read on this node",
        )
