"""Which mounts there are: the table as text, and single mounts by number or by place."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from lamina.linux.syscalls import LIBC, checked, from_os_error

# asm-generic/unistd.h
SYS_STATMOUNT: Final = 457
SYS_LISTMOUNT: Final = 458
# linux/fcntl.h
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_STATX_DONT_SYNC: Final = 0x4000
# linux/stat.h
STATX_MNT_ID_UNIQUE: Final = 0x4000
STATX_ATTR_MOUNT_ROOT: Final = 0x2000
# linux/mount.h
STATMOUNT_MNT_BASIC: Final = 0x2
LSMT_ROOT: Final = 0xFFFFFFFFFFFFFFFF

# struct statx is 256 bytes: 0 stx_mask u32, 8 stx_attributes u64, 136 stx_dev_major u32,
# 140 stx_dev_minor u32, 144 stx_mnt_id u64
_STATX_BYTES: Final = 256
_STATX: Final = struct.Struct("=I4xQ120xIIQ104x")
# struct mnt_id_req: 0 size u32, 4 spare u32, 8 mnt_id u64, 16 param u64
_MNT_ID_REQ: Final = struct.Struct("=IIQQ")
_STATMOUNT_BYTES: Final = 1024
_LISTED: Final = 4096


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


class _Place(NamedTuple):
    """What statx(2) tells of an open file or a path."""

    device: int
    mount_id: int
    is_root: bool


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


def _look(fd: int, path: bytes, flags: int) -> _Place:
    """Ask statx(2), and no file system (``AT_STATX_DONT_SYNC``)."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags |= AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT
    mask = ctypes.c_uint(STATX_MNT_ID_UNIQUE)
    result = LIBC.statx(fd, ctypes.c_char_p(path), flags, mask, buffer)
    checked(result, "statx", "cannot tell the mount of a file")
    given, attributes, major, minor, number = _STATX.unpack(buffer.raw)
    return _Place(
        os.makedev(major, minor),
        number if given & STATX_MNT_ID_UNIQUE else 0,
        bool(attributes & STATX_ATTR_MOUNT_ROOT),
    )


def device_number(fd: int) -> int:
    """Return ``st_dev`` of an open file without asking its file system anything.

    Raises SyscallError.
    """
    return _look(fd, b"", AT_EMPTY_PATH).device


def unique_mount_id(fd: int) -> int:
    """Return the number of the mount that an open file was reached by, which no other mount gets
    until the next boot; 0 before Linux 6.8.  Raises SyscallError.
    """
    return _look(fd, b"", AT_EMPTY_PATH).mount_id


def is_topmost(mountpoint: str, device: str) -> bool:
    """Return whether a lookup of an absolute path ends at the root of a mount whose ``st_dev`` is
    ``device`` (``major:minor``).

    Unlike :func:`topmost_mount` it costs the same however many mounts there are, but walks the
    path.  Raises SyscallError.
    """
    place = _look(AT_FDCWD, os.fsencode(mountpoint), AT_SYMLINK_NOFOLLOW)
    return place.is_root and f"{os.major(place.device)}:{os.minor(place.device)}" == device


def mounted_ids() -> frozenset[int]:
    """Return the numbers of all mounts of this mount namespace that can be reached from this
    process's root (listmount(2), Linux 6.8).  Raises SyscallError.
    """
    found: list[int] = []
    buffer = (ctypes.c_uint64 * _LISTED)()
    last = 0
    while True:
        request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, LSMT_ROOT, last)
        count = LIBC.syscall(
            ctypes.c_long(SYS_LISTMOUNT), request, buffer, ctypes.c_size_t(_LISTED), 0
        )
        checked(count, "listmount", "cannot list mounts")
        found += buffer[:count]
        if count < _LISTED:
            return frozenset(found)
        last = found[-1]


def is_mounted(mount_id: int) -> bool:
    """Return whether a mount of :func:`unique_mount_id` is in this process's mount namespace.

    Walks no path (statmount(2), Linux 6.8).  Raises SyscallError.
    """
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, mount_id, STATMOUNT_MNT_BASIC)
    buffer = ctypes.create_string_buffer(_STATMOUNT_BYTES)
    result = LIBC.syscall(
        ctypes.c_long(SYS_STATMOUNT), request, buffer, ctypes.c_size_t(_STATMOUNT_BYTES), 0
    )
    if result < 0 and ctypes.get_errno() == errno.ENOENT:
        return False
    checked(result, "statmount", "cannot look for a mount")
    return True
