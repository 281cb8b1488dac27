"""``openat2(2)``: opening below a folder without leaving it (Linux 5.6, ``linux/openat2.h``)."""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from lamina.errors import Error, FormatError
from lamina.linux.syscalls import checked, syscall

# asm-generic/unistd.h: the same number on every architecture
SYS_OPENAT2: Final = 437

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10

# struct open_how: 0 flags u64, 8 mode u64, 16 resolve u64
_OPEN_HOW: Final = struct.Struct("=QQQ")
_WITHOUT_LINKS: Final = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


def open_below(root_fd: int, path: str, flags: int) -> int:
    """Open ``path`` below the folder ``root_fd`` as if that were ``/``, and follow no link at all.

    With ``O_PATH | O_NOFOLLOW`` in ``flags`` a link at the end is opened itself.  Raises
    SyscallError: ELOOP for a link on the way, ENOENT, ENOTDIR; FormatError for a NUL byte.
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise FormatError(f"the path {path!r} has a NUL byte in it")
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, _WITHOUT_LINKS)
    result = syscall(SYS_OPENAT2, root_fd, encoded or b".", how, len(how))
    return checked(result, "openat2", f"cannot open {path or '/'} below a folder")


def open_file_below(root_fd: int, path: str) -> int:
    """Open a regular file below ``root_fd`` for reading as :func:`open_below` does; -1 if none is
    there.  Nothing else is opened: a device or a pipe may do something then, or wait.
    """
    try:
        found = open_below(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except Error:
        return -1
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return -1
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    finally:
        os.close(found)
