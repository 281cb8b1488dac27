"""Whether a superblock still exists, in whatever mount namespace."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final

from lamina.errors import UnsupportedError

# linux/fs.h, Linux 6.10: struct fs_sysfs_path is a length u8 and a name of 128 bytes
FS_IOC_GETFSSYSFSPATH: Final = 0x80811501
_SYSFS_PATH: Final = struct.Struct("=B128s")


class SuperblockWatch:
    """Tells whether a superblock still exists.

    A mount may be gone from our table while a container holds a copy of it or a program an open
    file.  Its bdi folder in sysfs (``erofs-42``) lives exactly as long as the superblock, and its
    number is never used again.
    """

    def __init__(self, filesystem: str, sysfs: str = "/sys/class/bdi") -> None:
        """Note which superblocks there are; call before mounting, if others may have to find out
        which one was mounted.
        """
        self._prefix = f"{filesystem}-"
        self._sysfs = sysfs
        self._older = self._names()
        self.paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, paths: Sequence[str]) -> SuperblockWatch:
        """Return the watch of a superblock that is known by its folders."""
        watch = cls("", os.devnull)
        watch.paths = tuple(paths)
        return watch

    @property
    def before(self) -> frozenset[str]:
        """The folders of the superblocks that were there before."""
        return self._folders(self._older)

    def require(self) -> None:
        """Raise UnsupportedError where there is no sysfs to tell."""
        if not os.path.isdir(self._sysfs):
            raise UnsupportedError(
                f"without {self._sysfs} nobody can tell when a mount has ended",
                hint="mount sysfs, or choose the device fuse-blob",
            )

    def _names(self) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self._sysfs))
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    def _folders(self, names: frozenset[str]) -> frozenset[str]:
        return frozenset(f"{self._sysfs}/{name}" for name in names if name.startswith(self._prefix))

    def mounted(self) -> None:
        """Take a second look, when the mount exists.  What others mounted in between is watched
        too, which errs on the safe side.
        """
        self.paths = tuple(self._folders(self._names() - self._older))

    @property
    def alive(self) -> bool:
        """Whether the superblock is there; False where there is no sysfs to tell."""
        return any(os.path.exists(path) for path in self.paths)


def superblock_folder(mount_fd: int, sysfs: str = "/sys/class/bdi") -> str:
    """Return the bdi folder of the mount that a descriptor of its root is of, whose file system
    names its superblocks as its bdi, as EROFS over files does.

    Costs the same however many there are.  Raises OSError before Linux 6.10, which is older than
    EROFS over files.
    """
    root = os.open(f"/proc/self/fd/{mount_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = bytearray(_SYSFS_PATH.size)
        fcntl.ioctl(root, FS_IOC_GETFSSYSFSPATH, answer)
    finally:
        os.close(root)
    length, name = _SYSFS_PATH.unpack(answer)
    return f"{sysfs}/{os.fsdecode(name[:length]).rpartition('/')[2]}"
