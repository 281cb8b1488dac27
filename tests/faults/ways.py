"""Ways to read a part of a file.  Each goes through other code of the kernel.

``WAYS`` has them by name.  A way gets (descriptor, offset, length, size of the file), and returns
some bytes from *offset* on, at least one unless the file ends there.  It raises OSError as the
system call does; :class:`ImpossibleError` where the kernel, or the file system, has no such way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable

PAGE = mmap.PAGESIZE
MADV_HUGEPAGE = 14
_MOST_BYTES = 1 << 20

Way = Callable[[int, int, int, int], bytes]


class ImpossibleError(Exception):
    """This kernel, or this file system, has no such way."""


def plain(fd: int, offset: int, length: int, size: int) -> bytes:
    """pread(2)."""
    del size
    return os.pread(fd, length, offset)


def mapped(fd: int, offset: int, length: int, size: int) -> bytes:
    """A mapping with large pages, whose faults read ahead up to 2 MiB."""
    # One that is shorter than it should be is no reason to fail here.
    size = min(size, os.fstat(fd).st_size)
    # A page a call, since each fault waits for a deadline of its own.
    length = min(length, size - offset, PAGE - offset % PAGE)
    if length <= 0:
        return b""
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        with contextlib.suppress(OSError):
            memory.madvise(MADV_HUGEPAGE)
        # Copied by the kernel: a page that cannot be read is EFAULT there, and SIGBUS here.
        with memoryview(memory) as view, view[offset : offset + length] as part:
            return _through_memory(lambda target: os.write(target, part))


def sent(fd: int, offset: int, length: int, size: int) -> bytes:
    """sendfile(2)."""
    del size
    return _through_memory(lambda target: os.sendfile(target, fd, offset, length))


def spliced(fd: int, offset: int, length: int, size: int) -> bytes:
    """splice(2) into a pipe."""
    del size
    read_end, write_end = os.pipe()
    try:
        count = os.splice(fd, write_end, length, offset_src=offset)
        return os.read(read_end, count) if count else b""
    finally:
        os.close(read_end)
        os.close(write_end)


def direct(fd: int, offset: int, length: int, size: int) -> bytes:
    """A read past the page cache."""
    del size
    start = offset - offset % PAGE
    room = -(-(offset + length - start) // PAGE) * PAGE
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ImpossibleError("O_DIRECT is refused") from error
        raise
    try:
        # Page-aligned, as it has to be.
        with mmap.mmap(-1, room) as buffer:
            count = os.preadv(own, [buffer], start)
            return buffer[offset - start : min(count, offset - start + length)]
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            raise ImpossibleError("direct reads are refused") from error
        raise
    finally:
        os.close(own)


def copied(fd: int, offset: int, length: int, size: int) -> bytes:
    """copy_file_range(2), which copies between mounts of some file systems only."""
    del size

    def copy(target: int) -> int:
        try:
            return os.copy_file_range(fd, target, length, offset_src=offset)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise ImpossibleError(f"refused with {errno.errorcode[error.errno]}") from error
            raise

    return _through_memory(copy)


def _through_memory(write: Callable[[int], int]) -> bytes:
    """Return what *write* puts into a file in memory."""
    target = os.memfd_create("read")
    try:
        return os.pread(target, write(target), 0)
    finally:
        os.close(target)


# linux/io_uring.h
_SETUP, _ENTER = 425, 426
_OP_READ = 22
_GETEVENTS = 1
_SINGLE_MMAP = 1
_OFF_SQES = 0x10000000
# sq_entries cq_entries flags sq_thread_cpu sq_thread_idle features wq_fd u32, resv 12; then
# io_sqring_offsets: head tail ring_mask ring_entries flags dropped array resv1 u32, user_addr u64;
# io_cqring_offsets: head tail ring_mask ring_entries overflow cqes flags resv1 u32, user_addr u64
_PARAMS = struct.Struct("=7I12x8IQ8IQ")
# opcode flags u8 | ioprio u16 | fd s32 | off addr u64 | len rw_flags u32 | user_data u64 | 24
_SQE = struct.Struct("=BBHiQQIIQ24x")
_CQE = struct.Struct("=QiI")
_U32 = struct.Struct("=I")


class Ring:
    """An io_uring that reads one thing at a time."""

    def __init__(self) -> None:
        """Raises ImpossibleError where the kernel forbids it."""
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = self._syscall(_SETUP, 1, params)
        if self._fd < 0:
            raise ImpossibleError(f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
        found = _PARAMS.unpack(params)
        submission, completion = found[7:16], found[16:25]
        if not found[5] & _SINGLE_MMAP:
            os.close(self._fd)
            raise ImpossibleError("the kernel is older than 5.4")
        self._tail, self._array = submission[1], submission[6]
        self._done_head, self._done_tail = completion[0], completion[1]
        self._done_mask, self._done = completion[2], completion[5]
        size = max(self._array + 4 * found[0], self._done + _CQE.size * found[1])
        self._rings = mmap.mmap(self._fd, size)
        self._entries = mmap.mmap(self._fd, 64 * found[0], offset=_OFF_SQES)
        self._buffer = mmap.mmap(-1, _MOST_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))

    def read(self, fd: int, offset: int, length: int, size: int) -> bytes:
        """IORING_OP_READ."""
        del size
        length = min(length, _MOST_BYTES)
        _SQE.pack_into(self._entries, 0, _OP_READ, 0, 0, fd, offset, self._address, length, 0, 1)
        _U32.pack_into(self._rings, self._array, 0)
        (tail,) = _U32.unpack_from(self._rings, self._tail)
        _U32.pack_into(self._rings, self._tail, (tail + 1) & 0xFFFFFFFF)
        to_submit = 1
        while True:
            (head,) = _U32.unpack_from(self._rings, self._done_head)
            if head != _U32.unpack_from(self._rings, self._done_tail)[0]:
                break
            done = self._syscall(_ENTER, self._fd, to_submit, 1, _GETEVENTS, None, 0)
            if done < 0 and ctypes.get_errno() != errno.EINTR:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
            to_submit -= max(done, 0)
        (mask,) = _U32.unpack_from(self._rings, self._done_mask)
        place = self._done + _CQE.size * (head & mask)
        _, result, _ = _CQE.unpack_from(self._rings, place)
        _U32.pack_into(self._rings, self._done_head, (head + 1) & 0xFFFFFFFF)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return self._buffer[:result]


_rings: list[Ring] = []


def by_ring(fd: int, offset: int, length: int, size: int) -> bytes:
    """io_uring."""
    if not _rings:
        _rings.append(Ring())
    return _rings[0].read(fd, offset, length, size)


WAYS: dict[str, Way] = {
    "pread": plain,
    "mmap, large pages": mapped,
    "sendfile": sent,
    "splice": spliced,
    "O_DIRECT": direct,
    "io_uring": by_ring,
    "copy_file_range": copied,
}
