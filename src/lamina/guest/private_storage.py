"""A guest's work folder is where the host cannot read: in memory, or on a disk that it encrypts.

Memory is the guest's alone as long as none of it is swapped to a disk of the host.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from lamina.errors import StoreError
from lamina.linux.mount_table import read_mount_table

_SWAPS: Final = Path("/proc/swaps")
_IN_MEMORY: Final = frozenset(("tmpfs", "ramfs", "rootfs"))


def refuse_visible_storage(folder: Path) -> None:
    """Raise StoreError if a folder is on anything but memory or dm-crypt.

    A disk without encryption is the host's, however the guest has it: by virtio-blk, by virtio-fs
    or over a network.
    """
    number = folder.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    kinds = {entry.filesystem for entry in read_mount_table() if entry.device == device}
    if (kinds and kinds <= _IN_MEMORY) or _is_encrypted(device):
        return
    raise StoreError(
        f"the work folder {folder} is on {min(kinds, default='an unknown file system')}, which the "
        "host reads too",
        hint="choose one on tmpfs, or on a disk of dm-crypt: --work DIR",
    )


def refuse_visible_swap(swaps: Path = _SWAPS) -> None:
    """Raise StoreError if memory is swapped to anything but dm-crypt or compressed memory.

    *swaps* is a table as proc_swaps(5) has it; a kernel without swap has none.
    """
    try:
        lines = swaps.read_text().splitlines()[1:]
    except FileNotFoundError:
        return
    for name in (line.split()[0] for line in lines if line.strip()):
        if not _is_private_swap(Path(name)):
            raise StoreError(
                f"memory is swapped to {name}, which the host reads too",
                hint=f"swapoff {name}, or swap to a disk of dm-crypt",
            )


def _is_private_swap(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        # Nobody can tell what it is.
        return False
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return _is_encrypted(device) or _is_compressed_memory(device)


def _is_compressed_memory(device: str) -> bool:
    folder = Path(f"/sys/dev/block/{device}").resolve()
    if not folder.name.startswith("zram"):
        return False
    try:
        return (folder / "backing_dev").read_text().strip() == "none"
    except OSError:
        # A kernel that cannot write any of it back.
        return True


def _is_encrypted(device: str) -> bool:
    try:
        name = Path(f"/sys/dev/block/{device}/dm/uuid").read_text()
    except OSError:
        return False
    return name.startswith("CRYPT-")
