"""One door to libc: calls that fail raise :class:`SyscallError` with the call, the errno and a
hint.
"""

from __future__ import annotations

import ctypes
import errno
import os

from lamina.errors import KernelError

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

_HINTS = {
    errno.EPERM: "this needs root (CAP_SYS_ADMIN)",
    errno.EACCES: "this needs root (CAP_SYS_ADMIN), or the path is not accessible",
    errno.ENOSYS: "this kernel is too old or was built without this feature",
    errno.EBUSY: "something still uses it",
    errno.ENODEV: "this kernel lacks the file system or the device driver",
    errno.ENOTBLK: "EROFS in a file needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, no tmpfs",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class SyscallError(KernelError):
    """A system call failed: ``syscall`` is its name, ``code`` the errno, ``detail`` what the kernel
    said beside it.
    """

    def __init__(
        self, syscall: str, code: int, what: str, *, hint: str | None = None, detail: str = ""
    ) -> None:
        name = errno.errorcode.get(code, str(code))
        said = f"; the kernel says: {detail}" if detail else ""
        super().__init__(
            f"{what}: {syscall} failed with {name} ({os.strerror(code)}){said}",
            hint=hint or _HINTS.get(code),
        )
        self.syscall = syscall
        self.code = code
        self.detail = detail


def from_os_error(
    error: OSError, syscall: str, what: str, *, hint: str | None = None
) -> SyscallError:
    """Return the :class:`SyscallError` that says what an ``OSError`` of the standard library
    says.
    """
    return SyscallError(syscall, error.errno or errno.EIO, what, hint=hint)


def checked(result: int, syscall: str, what: str, *, hint: str | None = None) -> int:
    """Return ``result`` of a libc call, or raise :class:`SyscallError` with the thread's errno if
    it is negative.
    """
    if result < 0:
        raise SyscallError(syscall, ctypes.get_errno(), what, hint=hint)
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Call ``syscall(2)`` and return its raw result; -1 leaves errno in ``ctypes.get_errno()``.

    Integers are passed as C long and bytes as pointers to NUL-terminated text, None as a null
    pointer.
    """
    converted = [
        ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)
        for argument in arguments
    ]
    return int(LIBC.syscall(ctypes.c_long(number), *converted))
