"""Mounting by file descriptor (Linux 5.2), and unmounting.

The ``fsopen`` family is used instead of ``mount(2)``: options are set one by one, so an image with
a hundred blobs does not meet the one-page limit of mount data, a comma in a path is no problem, the
kernel explains a refusal in words, and a mount can be used before it has a place in the tree.  All
of it needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from lamina.linux.syscalls import LIBC, SyscallError, checked, syscall

# asm-generic/unistd.h: the same numbers on every architecture that is not alpha
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_MOUNT_SETATTR = 442
# linux/mount.h
OPEN_TREE_CLONE = 0x1
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
# sys/mount.h
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# Those that are set here, and all bits of the field of times of access.
ALL_ATTRIBUTES = 0x1 | 0x2 | 0x4 | 0x8 | 0x70

ATTRIBUTES = {
    "ro": MOUNT_ATTR_RDONLY,
    "nosuid": MOUNT_ATTR_NOSUID,
    "nodev": MOUNT_ATTR_NODEV,
    "noexec": MOUNT_ATTR_NOEXEC,
    "noatime": MOUNT_ATTR_NOATIME,
}
"""The options of mount(8) that are attributes of a mount."""
# linux/fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# struct mount_attr: 0 attr_set u64, 8 attr_clr u64, 16 propagation u64, 24 userns_fd u64
_MOUNT_ATTR = struct.Struct("=QQQQ")
_LOG_LINE_BYTES = 8192


def create_mount(
    filesystem: str,
    source: str | None,
    options: Sequence[tuple[str, str | None]],
    attributes: int = 0,
) -> int:
    """Create a mount that is not in the tree yet and return a descriptor of its root.

    ``options`` are (key, value) pairs in order, value None for flags; ``attributes`` are
    ``MOUNT_ATTR_*``.  Files below the descriptor can be opened at once.  Closing it drops the mount
    unless :func:`attach_mount` gave it a place or open files keep it.  Raises SyscallError with the
    kernel's own words in ``detail``.
    """
    what = f"cannot mount {source or filesystem} as {filesystem}"
    context = checked(syscall(SYS_FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC), "fsopen", what)
    try:
        if source is not None:
            _configure(context, FSCONFIG_SET_STRING, b"source", os.fsencode(source), what)
        for key, value in options:
            if value is None:
                _configure(context, FSCONFIG_SET_FLAG, key.encode(), None, what)
            else:
                _configure(context, FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), what)
        _configure(context, FSCONFIG_CMD_CREATE, None, None, what)
        result = syscall(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
        if result < 0:
            raise SyscallError("fsmount", ctypes.get_errno(), what, detail=_kernel_log(context))
        return result
    finally:
        os.close(context)


def _configure(
    context: int, command: int, key: bytes | None, value: bytes | None, what: str
) -> None:
    if syscall(SYS_FSCONFIG, context, command, key, value, 0) < 0:
        code = ctypes.get_errno()
        raise SyscallError("fsconfig", code, what, detail=_kernel_log(context))


def _kernel_log(context: int) -> str:
    lines = []
    with contextlib.suppress(OSError):
        while line := os.read(context, _LOG_LINE_BYTES):
            lines.append(line.decode(errors="replace").strip())
    return "; ".join(lines)


def clone_tree(source: str, attributes: int = 0, *, follows: bool = False) -> int:
    """Return the descriptor of a copy of the mounts at and below ``source``, a folder or a file,
    without a place yet: what ``mount --rbind`` makes (Linux 5.12).

    ``attributes`` are ``MOUNT_ATTR_*``, for all of them.  The copy is private, or gets what is
    mounted later below its original (``follows``).  Raises SyscallError.
    """
    what = f"cannot bind {source}"
    flags = OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    tree = syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), flags)
    checked(tree, "open_tree", what)
    try:
        wanted = _MOUNT_ATTR.pack(attributes, 0, MS_SLAVE if follows else MS_PRIVATE, 0)
        flags = AT_EMPTY_PATH | AT_RECURSIVE
        result = syscall(SYS_MOUNT_SETATTR, tree, b"", flags, wanted, len(wanted))
        checked(result, "mount_setattr", what)
    except BaseException:
        os.close(tree)
        raise
    return tree


def clone_mount(folder: int, attributes: int) -> int:
    """Return the descriptor of another mount of the superblock of an open folder, without a place
    yet, whose ``MOUNT_ATTR_*`` are ``attributes`` and not those of the first (Linux 5.12).

    Mounts below it are left out.  Raises SyscallError, as for one of another mount namespace.
    """
    what = "cannot share the superblock of a mount"
    flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC
    clone = checked(syscall(SYS_OPEN_TREE, folder, b"", flags), "open_tree", what)
    try:
        wanted = _MOUNT_ATTR.pack(attributes, ALL_ATTRIBUTES, MS_PRIVATE, 0)
        result = syscall(SYS_MOUNT_SETATTR, clone, b"", AT_EMPTY_PATH, wanted, len(wanted))
        checked(result, "mount_setattr", what)
    except BaseException:
        os.close(clone)
        raise
    return clone


def attach_mount(mount_fd: int, mountpoint: str | int) -> None:
    """Give a mount of :func:`create_mount` or :func:`clone_tree` its place in this mount namespace.

    ``mountpoint`` must exist: a path, or a descriptor (``O_PATH`` is enough), which no rename and
    no link can lead elsewhere.
    """
    if isinstance(mountpoint, int):
        folder, path, flags = mountpoint, "", MOVE_MOUNT_T_EMPTY_PATH
    else:
        folder, path, flags = AT_FDCWD, mountpoint, 0
    flags |= MOVE_MOUNT_F_EMPTY_PATH
    result = syscall(SYS_MOVE_MOUNT, mount_fd, b"", folder, os.fsencode(path), flags)
    checked(result, "move_mount", f"cannot attach a mount at {path or 'an open folder'}")


def unmount(mountpoint: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """Take the topmost mount off ``mountpoint``.

    With ``MNT_DETACH`` it leaves the tree at once and ends when its last user does.  ``MNT_FORCE``
    on FUSE ends the connection even where the unmount itself then fails with EBUSY.
    """
    result = LIBC.umount2(ctypes.c_char_p(os.fsencode(mountpoint)), ctypes.c_int(flags))
    hint = None
    if result < 0 and ctypes.get_errno() == errno.EBUSY:
        hint = (
            "a program has files open or its working directory there, or a mount is below it; "
            "end that, or unmount lazily: --lazy"
        )
    checked(result, "umount2", f"cannot unmount {mountpoint}", hint=hint)


def filesystem_known(name: str) -> bool:
    """Return whether this kernel has a file system, loading its module if there is one.

    Needs CAP_SYS_ADMIN; without it the answer is taken from ``/proc/filesystems``.
    """
    result = syscall(SYS_FSOPEN, name.encode(), FSOPEN_CLOEXEC)
    if result >= 0:
        os.close(result)
        return True
    if ctypes.get_errno() == errno.ENODEV:
        return False
    with open("/proc/filesystems") as file:
        return name in file.read().split()
