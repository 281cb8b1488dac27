"""fanotify pre-content events (Linux 6.14): be asked before the kernel reads a range of a file.

fanotify(7) and ``include/uapi/linux/fanotify.h``.  Creating a group needs CAP_SYS_ADMIN; the marked
files must be on a file system with ``FS_ALLOW_HSM`` (ext4, xfs, btrfs, bcachefs), else the mark is
refused with EOPNOTSUPP.

What a user of this module must know:

* **An unattended group fails open.**  When the last descriptor of a group is closed the kernel lets
  every waiting and later reader through, and they see whatever the file holds.
* The number of the event's descriptor is the kernel's only key to the event, in the table of the
  process that read it. So one process reads a group at a time, though any number of its threads
  may.
* The event's descriptor carries no-notify: reading and writing through it raises no event.  Every
  other access to a marked file does, one's own too, and waits for an answer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lamina.errors import KernelError
from lamina.linux.syscalls import LIBC, checked

# linux/fanotify.h
FAN_CLOEXEC = 0x00000001
FAN_NONBLOCK = 0x00000002
FAN_CLASS_PRE_CONTENT = 0x00000008
FAN_UNLIMITED_QUEUE = 0x00000010
FAN_UNLIMITED_MARKS = 0x00000020
FAN_MARK_ADD = 0x00000001
FAN_MARK_REMOVE = 0x00000002
FAN_PRE_ACCESS = 0x00100000
FAN_ALLOW = 0x01
FAN_DENY = 0x02
FAN_ERRNO_SHIFT = 24
FANOTIFY_METADATA_VERSION = 3
FAN_EVENT_INFO_TYPE_RANGE = 6

EVENT_BYTES = 48
"""One pre-content event: 24 bytes of metadata and a range record of 24.  A buffer of this size
takes exactly one.
"""

# event_len u32 | vers u8 | reserved u8 | metadata_len u16 | mask u64 | fd s32 | pid s32
_METADATA = struct.Struct("=IBBHQii")
# info_type u8 | pad u8 | len u16
_INFO_HEADER = struct.Struct("=BBH")
# after the info header: pad u32 | offset u64 | count u64
_RANGE = struct.Struct("=IQQ")
# fd s32 | response u32
_RESPONSE = struct.Struct("=iI")

# Any other one in a denial is refused with EINVAL, and its reader waits on: the switch in
# process_access_response() of fs/notify/fanotify/fanotify_user.c, Linux 6.14 to 6.18.
DENIABLE = frozenset(
    (
        errno.EPERM,
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ETXTBSY,
        errno.ENOSPC,
        errno.EDQUOT,
    )
)
"""The errnos that a reader can be given."""


class Event(NamedTuple):
    """``size_bytes`` at ``offset`` of the file behind ``fd`` are about to be accessed.

    ``fd`` belongs to the receiver, who answers with :func:`respond` and then closes it.  An event
    without a range record (an mmap of a file whose size is unknown) has ``size_bytes`` 0.
    """

    mask: int
    fd: int
    pid: int
    offset: int
    size_bytes: int


class GroupLimitError(KernelError):
    """This user has as many fanotify groups as the kernel allows."""

    def __init__(self) -> None:
        super().__init__(
            f"there may be no more than {_most_groups()} fanotify groups of one user "
            "(fs.fanotify.max_user_groups), and each image that is mounted on fanotify has one",
            hint="raise that by sysctl, unmount some, or choose --device fuse-blob",
        )


def _most_groups() -> str:
    try:
        with open("/proc/sys/fs/fanotify/max_user_groups") as file:
            return file.read().strip()
    except OSError:
        return "so many"


def _may_open_more() -> bool:
    """Return whether EMFILE was not about the descriptors of this process."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno != errno.EMFILE
    return True


def require_group() -> None:
    """Raise what :func:`create_group` would."""
    os.close(create_group())


def create_group(event_flags: int = os.O_RDWR | os.O_CLOEXEC) -> int:
    """Return the descriptor of a new non-blocking pre-content group; ``event_flags`` open the
    events' descriptors.
    """
    flags = (
        FAN_CLASS_PRE_CONTENT
        | FAN_CLOEXEC
        | FAN_NONBLOCK
        | FAN_UNLIMITED_QUEUE
        | FAN_UNLIMITED_MARKS
    )
    result = LIBC.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(event_flags | os.O_LARGEFILE))
    if result < 0 and ctypes.get_errno() == errno.EMFILE and _may_open_more():
        raise GroupLimitError
    return checked(
        result,
        "fanotify_init",
        "cannot create a fanotify group",
        hint="needs root and Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
    )


def add_mark(group: int, fd: int) -> None:
    """Ask for an event before each access to the content of the file behind ``fd``."""
    _mark(group, FAN_MARK_ADD, fd)


def remove_mark(group: int, fd: int) -> None:
    """Stop asking for events of the file behind ``fd``; those already queued still want an
    answer.
    """
    _mark(group, FAN_MARK_REMOVE, fd)


def _mark(group: int, action: int, fd: int) -> None:
    result = LIBC.fanotify_mark(
        ctypes.c_int(group),
        ctypes.c_uint(action),
        ctypes.c_uint64(FAN_PRE_ACCESS),
        ctypes.c_int(fd),
        None,
    )
    checked(
        result,
        "fanotify_mark",
        "cannot watch reads of a cache file",
        hint="pre-content events need Linux 6.14 and a file on ext4, xfs or btrfs",
    )


def parse_events(data: bytes | memoryview) -> Iterator[Event]:
    """Yield the events in what ``read(2)`` of a group returned.

    Raises KernelError if the bytes are not events of version 3.
    """
    position = 0
    while position < len(data):
        if len(data) - position < _METADATA.size:
            raise KernelError("fanotify returned a truncated event")
        length, version, _, metadata_length, mask, fd, pid = _METADATA.unpack_from(data, position)
        if version != FANOTIFY_METADATA_VERSION:
            raise KernelError(f"fanotify events of version {version} are not understood")
        if not _METADATA.size <= metadata_length <= length <= len(data) - position:
            raise KernelError("fanotify returned an event whose lengths disagree")
        offset, size_bytes = _find_range(data[position + metadata_length : position + length])
        yield Event(mask, fd, pid, offset, size_bytes)
        position += length


def encode_event(event: Event) -> bytes:
    """Return an event as the kernel gives it, with its range."""
    head = _METADATA.pack(
        EVENT_BYTES, FANOTIFY_METADATA_VERSION, 0, _METADATA.size, event.mask, event.fd, event.pid
    )
    length = _INFO_HEADER.size + _RANGE.size
    header = _INFO_HEADER.pack(FAN_EVENT_INFO_TYPE_RANGE, 0, length)
    return head + header + _RANGE.pack(0, event.offset, event.size_bytes)


def _find_range(records: bytes | memoryview) -> tuple[int, int]:
    position = 0
    while len(records) - position >= _INFO_HEADER.size:
        kind, _, length = _INFO_HEADER.unpack_from(records, position)
        if not _INFO_HEADER.size <= length <= len(records) - position:
            break
        if kind == FAN_EVENT_INFO_TYPE_RANGE and length >= _INFO_HEADER.size + _RANGE.size:
            _, offset, size_bytes = _RANGE.unpack_from(records, position + _INFO_HEADER.size)
            return offset, size_bytes
        position += length
    return 0, 0


def encode_response(fd: int, code: int = 0) -> bytes:
    """Return the answer to event ``fd``: go on, or fail with errno ``code`` if that is not 0.

    Those that are not :data:`DENIABLE` become EIO.
    """
    if code == 0:
        return _RESPONSE.pack(fd, FAN_ALLOW)
    given = code if code in DENIABLE else errno.EIO
    return _RESPONSE.pack(fd, FAN_DENY | given << FAN_ERRNO_SHIFT)


def respond(group: int, fd: int, code: int = 0) -> None:
    """Answer the event numbered ``fd``; see :func:`encode_response`.

    Raises FileNotFoundError if no such event waits, and OSError (EINVAL) for what is no answer.
    """
    os.write(group, encode_response(fd, code))
