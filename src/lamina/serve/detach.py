"""Taking a mount out of the tree, as root or through fusermount3."""

from __future__ import annotations

import os

from lamina.errors import UsageError
from lamina.linux import mount
from lamina.linux.fuse_device import unmount_unprivileged


def detach(mountpoint: str, device_number: str, *, lazy: bool) -> None:
    """Unmount what has ``device_number`` (``major:minor``) at the absolute path ``mountpoint``.

    Raises UsageError if something else is mounted over it, SyscallError (EBUSY) if it is in use and
    not ``lazy``.
    """
    entry = mount.topmost_mount(mountpoint)
    if entry is None:
        return
    if entry.device != device_number:
        raise UsageError(
            f"{entry.source} ({entry.filesystem}) is mounted over the image at {mountpoint}",
            hint="unmount that first",
        )
    if os.geteuid() != 0:
        unmount_unprivileged(mountpoint, lazy=lazy)
        return
    flags = mount.UMOUNT_NOFOLLOW | (mount.MNT_DETACH if lazy else 0)
    mount.unmount(mountpoint, flags)
