"""Temporary files without a name: gone when they are closed, whatever ends the process."""

from __future__ import annotations

import errno
import os
from typing import BinaryIO, cast

_NOT_KNOWN = frozenset((errno.EISDIR, errno.ENOENT, errno.EOPNOTSUPP))
"""What a kernel (before 3.11) or file system without ``O_TMPFILE`` says (open(2))."""


def open_unnamed_file(folder: str) -> BinaryIO:
    """Return an empty unbuffered file in ``folder``, open for reading and writing.

    Raises OSError if it cannot be made.
    """
    try:
        # Only Linux has the flag; without it a folder cannot be opened for writing (EISDIR).
        flags = getattr(os, "O_TMPFILE", 0) | os.O_RDWR | os.O_CLOEXEC
        fd = os.open(folder, flags, 0o600)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise
        import tempfile

        return cast("BinaryIO", tempfile.TemporaryFile(buffering=0, dir=folder))
    return cast("BinaryIO", os.fdopen(fd, "r+b", buffering=0))
