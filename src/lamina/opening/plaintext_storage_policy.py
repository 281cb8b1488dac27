"""Plaintext of sealed images is not written where another machine, or the host of this one, reads.

A host that shares a folder with its guest, and lets the node store be there, would otherwise be
given what the image is sealed against.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from lamina.errors import StoreError, UnsupportedError

SHARED: Final = frozenset(
    (
        *("virtiofs", "9p", "vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "prl_fs"),
        *("nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "fuse.sshfs"),
    )
)
"""File systems whose server is a host or another machine, by their names in mountinfo (proc(5))."""


def refuse_shared_storage(root: Path) -> None:
    """Raise StoreError if a folder is on a file system that others have too."""
    if sys.platform != "linux":
        raise UnsupportedError(
            "the image is sealed, and only on Linux is it known who else reads the node store",
            hint="open it on Linux, or `lamina decrypt` what is encrypted by layers",
        )
    from lamina.linux.mount_table import read_mount_table

    number = root.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for entry in read_mount_table():
        if entry.device == device and entry.filesystem in SHARED:
            raise StoreError(
                f"the store {root} is on {entry.filesystem}, which its server reads too, and the "
                "image is sealed",
                hint="choose a folder on a disk or in the memory of this machine: --store DIR",
            )
