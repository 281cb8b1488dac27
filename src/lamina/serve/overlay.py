"""The writable layer of a container: an overlay of a read-only tree and a folder for changes.

Kernel documentation: filesystems/overlayfs.rst.  The folder for changes must be on a file system
that overlayfs can write to (not on another overlay, as inside a container); where it is not, memory
takes its place.
"""

from __future__ import annotations

import errno
import os
import stat

from lamina.linux.mount import (
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    attach_mount,
    create_mount,
    unmount,
)
from lamina.linux.syscalls import SyscallError, from_os_error

_BOOKKEEPING = ("trusted.overlay.",)
_UNFIT = (errno.EINVAL, errno.EOPNOTSUPP)


def mount_overlay(lower: str, changes: str, mountpoint: str, *, throwaway: bool) -> bool:
    """Mount an overlay whose changes go to ``changes/upper``; return whether they will still be
    there afterwards.

    ``throwaway`` spares the disk every flush.  False means that the file system under ``changes``
    is none that overlayfs takes, and that the changes are in memory instead.  Needs CAP_SYS_ADMIN;
    raises SyscallError.
    """
    options = ("volatile",) if throwaway else ()
    try:
        _mount(lower, changes, mountpoint, options)
    except SyscallError as error:
        if error.code not in _UNFIT:
            raise
        memory = create_mount("tmpfs", "lamina", [("mode", "0700")])
        try:
            attach_mount(memory, changes)
        finally:
            os.close(memory)
        _mount(lower, changes, mountpoint, options)
        return False
    return True


def mount_folder_overlay(lower: str, changes: str, mountpoint: str) -> None:
    """Mount an overlay of one folder of a tree, whose changes go to ``changes/upper``.  Raises
    SyscallError.
    """
    _mount(lower, changes, mountpoint, ())


def _mount(lower: str, changes: str, mountpoint: str, flags: tuple[str, ...]) -> None:
    upper, work = os.path.join(changes, "upper"), os.path.join(changes, "work")
    for folder in (upper, work):
        os.makedirs(folder, exist_ok=True)
    _copy_attributes(lower, upper)
    pairs: list[tuple[str, str | None]] = [
        ("lowerdir", _escaped(lower)),
        ("upperdir", _escaped(upper)),
        ("workdir", _escaped(work)),
        *((flag, None) for flag in flags),
    ]
    descriptor = create_mount("overlay", "overlay", pairs)
    try:
        attach_mount(descriptor, mountpoint)
    finally:
        os.close(descriptor)


def _copy_attributes(lower: str, upper: str) -> None:
    """Make the upper folder, which is the root of the merged tree, look like the image's root."""
    status = os.stat(lower)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)
    for name in os.listxattr(lower):
        if not name.startswith(_BOOKKEEPING):
            _copy_attribute(lower, upper, name)
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_attribute(lower: str, upper: str, name: str) -> None:
    try:
        os.setxattr(upper, name, os.getxattr(lower, name))
    except OSError as error:
        raise from_os_error(
            error,
            "setxattr",
            f"cannot give the container's root folder the attribute {name!r} of the image's",
            hint="the file system of the node store refuses it; choose another one with --store",
        ) from error


def _escaped(path: str) -> str:
    """Escape a path for the options of overlayfs.

    The kernel cuts them at colons and, before Linux 6.5, at commas; a backslash protects.
    """
    return "".join(f"\\{char}" if char in "\\:," else char for char in path)


def prune_mount_points(upper: str, targets: list[str], lower: str) -> None:
    """Remove from the changes what the runtime made only to mount on: empty files and folders that
    the image lacks, and empty copies of the folders above them.

    A container may have put symbolic links in their place, which lead anywhere: nothing behind one
    is touched.
    """
    upper = os.path.realpath(upper)
    for target in targets:
        parts = [part for part in target.split("/") if part]
        for count in range(len(parts), 0, -1):
            inner = "/".join(parts[:count])
            parent = os.path.join(upper, *parts[: count - 1])
            if ".." in parts or os.path.realpath(parent) != parent:
                break
            if not _remove_if_made(os.path.join(upper, inner), os.path.join(lower, inner)):
                break


def _remove_if_made(path: str, original: str) -> bool:
    """Remove an empty file or folder unless it says more than its original; False if it stays."""
    try:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            if os.path.lexists(original) and not _is_plain_copy(path, original):
                return False
            os.rmdir(path)
        elif stat.S_ISREG(status.st_mode) and not status.st_size and not os.path.lexists(original):
            os.unlink(path)
        else:
            return False
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _is_plain_copy(path: str, original: str) -> bool:
    """Tell whether a folder of the changes has the mode, owner and attributes of the image's."""
    mine, theirs = os.lstat(path), os.lstat(original)
    same = (mine.st_mode, mine.st_uid, mine.st_gid) == (
        theirs.st_mode,
        theirs.st_uid,
        theirs.st_gid,
    )
    names = {name for name in os.listxattr(path) if not name.startswith(_BOOKKEEPING)}
    opaque = "trusted.overlay.opaque" in os.listxattr(path)
    return same and not opaque and names == set(os.listxattr(original))


def has_changes(upper: str) -> bool:
    """Tell whether anything is in the folder for changes."""
    with os.scandir(upper) as entries:
        return any(True for _ in entries)


def unmount_quietly(mountpoint: str) -> None:
    """Take a mount away, at the latest when its last user does; a mount that is not there is
    fine.
    """
    try:
        unmount(mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)
    except SyscallError as error:
        if error.code not in (errno.EINVAL, errno.ENOENT):
            raise
