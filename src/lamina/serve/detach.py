"""Whether a mount is in the tree, and taking it out, as root or through fusermount3."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from lamina.errors import UsageError
from lamina.linux import mount
from lamina.linux.fuse_device import unmount_unprivileged
from lamina.linux.mount_table import (
    is_mounted,
    is_topmost,
    mounted_ids,
    read_mount_table,
    topmost_mount,
)
from lamina.linux.syscalls import SyscallError
from lamina.serve.mount_records import MountRecord

_FEW: Final = 8
"""It takes about so many questions about one mount to cost what a list of all does."""


def find_attached(records: Sequence[MountRecord]) -> Iterator[MountRecord]:
    """Yield those of ``records`` whose mounts are in the tree of this mount namespace.

    No path is walked: a mount on it may be one that never answers.
    """
    numbered = [record for record in records if record.mount_id]
    unnumbered = [record for record in records if not record.mount_id]
    try:
        if len(numbered) > _FEW:
            there = mounted_ids()
            yield from (record for record in numbered if record.mount_id in there)
        else:
            yield from [record for record in numbered if is_mounted(record.mount_id)]
    except SyscallError:
        unnumbered = list(records)
    # Before Linux 6.8 mounts have no numbers of their own.
    if unnumbered:
        table = {(entry.mountpoint, entry.device) for entry in read_mount_table()}
        yield from (each for each in unnumbered if (each.mountpoint, each.device_number) in table)


def _is_on_top(mountpoint: str, device_number: str) -> bool:
    try:
        return is_topmost(mountpoint, device_number)
    except SyscallError:
        # A dead mount above may say anything: the table knows.
        return False


def detach(mountpoint: str, device_number: str, *, lazy: bool) -> None:
    """Unmount what has ``device_number`` (``major:minor``) at the absolute path ``mountpoint``.

    Raises UsageError if something else is mounted over it, SyscallError (EBUSY) if it is in use and
    not ``lazy``.
    """
    if not _is_on_top(mountpoint, device_number):
        entry = topmost_mount(mountpoint)
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
