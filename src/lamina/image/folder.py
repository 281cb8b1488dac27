"""A directory on disk as an image, to compare with."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from lamina.errors import Error, NotFoundError
from lamina.image.base import ImageBase, Stat, Where, below, shown
from lamina.image.errors import FileKindError, NotDirectoryError, PathNotFoundError
from lamina.image.file import require_file

NO_XATTRS = frozenset((errno.ENOTSUP, errno.EPERM))


class FolderImage(ImageBase):
    """The tree below a directory, resolved as if that were the root.

    Inode numbers are unique across file systems: the device number makes their upper part.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Use the directory at *path*; raises NotFoundError if there is none."""
        self._base = os.fsencode(os.path.realpath(path))
        if not os.path.isdir(self._base):
            raise NotFoundError(f"there is no directory {shown(self._base)}")

    @property
    def root(self) -> Stat:
        """The root directory."""
        return _stat(b"/", self._lstat(b"/"))

    def child(self, directory: Stat, name: bytes) -> Stat | None:
        """Return the entry *name* of a directory, or None."""
        path = below(directory, name)
        try:
            return _stat(path, self._lstat(path))
        except PathNotFoundError:
            return None

    def scandir(self, where: Where) -> Iterator[tuple[bytes, Stat]]:
        """Yield (name, Stat) of a directory in byte order, without ``.`` and ``..``."""
        here = self.find(where)
        if not here.is_dir:
            raise NotDirectoryError(f"{shown(here.path)} is not a directory")
        try:
            names = sorted(os.listdir(self._base + here.path))
        except OSError as error:
            raise _failure("list", here.path, error) from error
        for name in names:
            path = below(here, name)
            yield name, _stat(path, self._lstat(path))

    def readlink(self, where: Where) -> bytes:
        """Return the target of a symbolic link; raises FileKindError if it is none."""
        here = self.find(where, follow_symlinks=False)
        if not here.is_symlink:
            raise FileKindError(f"{shown(here.path)} is not a symbolic link")
        try:
            return os.readlink(self._base + here.path)
        except OSError as error:
            raise _failure("read the link", here.path, error) from error

    def xattrs(self, where: Where) -> dict[bytes, bytes]:
        """Return the extended attributes, by full name, of the inode itself (no link followed)."""
        here = self.find(where, follow_symlinks=False)
        path = self._base + here.path
        try:
            if not hasattr(os, "listxattr"):
                # Python has the call on Linux only.
                return {}
            names = os.listxattr(path, follow_symlinks=False)
            return {
                os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names
            }
        except OSError as error:
            if error.errno in NO_XATTRS:
                return {}
            raise _failure("read the attributes of", here.path, error) from error

    def pread(self, stat: Stat, offset: int, size: int) -> bytes:
        """Read *size* bytes of a regular file at *offset*; fewer only at the end of the file."""
        require_file(stat)
        wanted = min(size, stat.size - offset)
        if offset < 0 or wanted <= 0:
            return b""
        try:
            fd = os.open(self._base + stat.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return os.pread(fd, wanted, offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise _failure("read", stat.path, error) from error

    def close(self) -> None:
        """Do nothing: a folder holds nothing open."""

    def _lstat(self, path: bytes) -> os.stat_result:
        try:
            return os.lstat(self._base + path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PathNotFoundError(f"there is no {shown(path)} in the folder") from error
        except OSError as error:
            raise _failure("stat", path, error) from error


def _failure(what: str, path: bytes, error: OSError) -> Error:
    return Error(f"cannot {what} {shown(path)} of the folder: {error.strerror}")


def _stat(path: bytes, status: os.stat_result) -> Stat:
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    return Stat(
        path,
        status.st_dev << 64 | status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        seconds,
        nanoseconds,
        minor & 0xFF | major << 8 | (minor & ~0xFF) << 12,
    )
