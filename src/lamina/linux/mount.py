"""Mounting by file descriptor (Linux 5.2), unmounting, and reading the mount table.

The ``fsopen`` family is used instead of ``mount(2)``: options are set one by one, so an image with
a hundred blobs does not meet the one-page limit of mount data, a comma in a path is no problem, the
kernel explains a refusal in words, and a mount can be used before it has a place in the tree.  All
but reading the table needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lamina.errors import UnsupportedError
from lamina.linux.syscalls import LIBC, SyscallError, checked, from_os_error, syscall

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
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

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
AT_STATX_DONT_SYNC = 0x4000

# struct mount_attr: 0 attr_set u64, 8 attr_clr u64, 16 propagation u64, 24 userns_fd u64
_MOUNT_ATTR = struct.Struct("=QQQQ")
# struct statx is 256 bytes; stx_dev_major u32 is at 136, stx_dev_minor u32 at 140
_STATX_BYTES = 256
_STATX_DEVICE = struct.Struct("=136xII112x")
_LOG_LINE_BYTES = 8192


class MountEntry(NamedTuple):
    """One line of ``/proc/self/mountinfo`` (proc(5)); ``device`` is ``st_dev`` of its files as
    ``major:minor``.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    options: str
    filesystem: str
    source: str
    super_options: str


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


def clone_tree(source: str, attributes: int = 0) -> int:
    """Return the descriptor of a private copy of the mounts at and below ``source``, a folder or a
    file, without a place yet: what ``mount --rbind`` makes (Linux 5.12).

    ``attributes`` are ``MOUNT_ATTR_*``, for all of them.  Raises SyscallError.
    """
    what = f"cannot bind {source}"
    flags = OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    tree = syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), flags)
    checked(tree, "open_tree", what)
    try:
        wanted = _MOUNT_ATTR.pack(attributes, 0, MS_PRIVATE, 0)
        flags = AT_EMPTY_PATH | AT_RECURSIVE
        result = syscall(SYS_MOUNT_SETATTR, tree, b"", flags, wanted, len(wanted))
        checked(result, "mount_setattr", what)
    except BaseException:
        os.close(tree)
        raise
    return tree


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
            "end that, or unmount lazily"
        )
    checked(result, "umount2", f"cannot unmount {mountpoint}", hint=hint)


def device_number(fd: int) -> int:
    """Return ``st_dev`` of an open file without asking its file system anything
    (``AT_STATX_DONT_SYNC``).
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC
    result = LIBC.statx(fd, ctypes.c_char_p(b""), flags, ctypes.c_uint(0), buffer)
    checked(result, "statx", "cannot tell the device of an open file")
    return os.makedev(*_STATX_DEVICE.unpack(buffer.raw))


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


def read_mount_table(path: str = "/proc/self/mountinfo") -> list[MountEntry]:
    """Return the mounts of this process's mount namespace, oldest first."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise from_os_error(error, "open", f"cannot read {path}") from error
    return list(parse_mount_table(data))


def parse_mount_table(data: bytes) -> Iterator[MountEntry]:
    """Yield the entries of mountinfo text; lines that are not of its form are passed over."""
    for line in data.splitlines():
        front, separator, back = line.partition(b" - ")
        fields, tail = front.split(b" "), back.split(b" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        if not (fields[0].isdigit() and fields[1].isdigit()):
            continue
        yield MountEntry(
            int(fields[0]),
            int(fields[1]),
            fields[2].decode(errors="replace"),
            _unescape(fields[3]),
            _unescape(fields[4]),
            fields[5].decode(errors="replace"),
            tail[0].decode(errors="replace"),
            _unescape(tail[1]),
            _unescape(tail[2]),
        )


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's ``\ooo`` escapes of space, tab, newline and backslash in mountinfo."""
    if b"\\" not in field:
        return os.fsdecode(field)
    head, *rest = field.split(b"\\")
    out = bytearray(head)
    for part in rest:
        octal = part[:3]
        if (
            len(octal) == 3
            and all(0x30 <= digit <= 0x37 for digit in octal)
            and int(octal, 8) < 256
        ):
            out.append(int(octal, 8))
            out += part[3:]
        else:
            out += b"\\" + part
    return os.fsdecode(bytes(out))


def topmost_mount(mountpoint: str) -> MountEntry | None:
    """Return the mount that a lookup of an absolute path ends in, or None if none is there.

    Reads the table only: the mount itself may be one that never answers.
    """
    found = None
    for entry in read_mount_table():
        if entry.mountpoint == mountpoint:
            found = entry
    return found


class SuperblockWatch:
    """Tells whether a superblock still exists, in whatever mount namespace.

    A mount may be gone from our table while a container holds a copy of it or a program an open
    file.  Its bdi folder in sysfs (``erofs-42``) lives exactly as long as the superblock, and its
    number is never used again.  Nothing leads from a mount to that name, so the names before and
    after mounting are compared; what others mounted in between is watched too, which errs on the
    safe side.
    """

    def __init__(self, filesystem: str, sysfs: str = "/sys/class/bdi") -> None:
        """Take the first look; call before mounting."""
        self._prefix = f"{filesystem}-"
        self._sysfs = sysfs
        self.before = frozenset(self._look())
        self.paths: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise UnsupportedError where there is no sysfs to tell."""
        if not os.path.isdir(self._sysfs):
            raise UnsupportedError(
                f"without {self._sysfs} nobody can tell when a mount has ended",
                hint="mount sysfs, or choose the device fuse-blob",
            )

    def _look(self) -> set[str]:
        try:
            names = os.listdir(self._sysfs)
        except FileNotFoundError:
            return set()
        return {f"{self._sysfs}/{name}" for name in names if name.startswith(self._prefix)}

    def mounted(self) -> None:
        """Take the second look; call when the mount exists."""
        self.paths = tuple(self._look() - self.before)

    @property
    def alive(self) -> bool:
        """Whether the superblock is there; False where there is no sysfs to tell."""
        return any(os.path.exists(path) for path in self.paths)
