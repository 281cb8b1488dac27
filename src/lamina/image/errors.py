"""Errors about paths in an image.

Each is a :class:`lamina.errors.Error` (exit code, hint) and also the builtin that :func:`open`
would raise, so ``except FileNotFoundError`` and ``except lamina.Error`` both work.
"""

from __future__ import annotations

import errno

from lamina.errors import (
    IntegrityError,
    NotFoundError,
    TrustError,
    UnsupportedError,
    UsageError,
)

# OSError keeps errno in the instance and Error in the class; the class wins, which is what we want.


class PathNotFoundError(NotFoundError, FileNotFoundError):  # type: ignore[misc]
    """There is no such path in the image."""


class NotDirectoryError(NotFoundError, NotADirectoryError):
    """A path leads through something that is not a directory."""

    errno = errno.ENOTDIR  # type: ignore[misc]


class ClosedImageError(UsageError, ValueError):
    """An image is used after it was closed; :mod:`io` has ValueError for that."""


class NoIndexError(UnsupportedError):
    """An ordinary image is to be opened as it is, and nobody has indexed it."""


class UnusableIndexError(NoIndexError, IntegrityError):
    """The only index of an ordinary image is damaged, or is none of that image."""

    exit_code = IntegrityError.exit_code
    errno = IntegrityError.errno


class UntrustedIndexError(TrustError):
    """The only index of an ordinary image is one that a policy does not let be used."""


class NoKeyError(TrustError):
    """A sealed image is to be opened without any key."""


class LinkLoopError(NotFoundError, OSError):
    """A path leads through more symbolic links than Linux follows."""

    errno = errno.ELOOP  # type: ignore[misc]


class IsDirectoryError(UsageError, IsADirectoryError):
    """A directory where a file is wanted."""

    errno = errno.EISDIR  # type: ignore[misc]


class FileKindError(UsageError, OSError):
    """A device, fifo, socket or link where another kind of file is wanted."""

    errno = errno.EINVAL  # type: ignore[misc]


class ReadOnlyError(UnsupportedError, OSError):
    """A change to an image was asked for."""

    errno = errno.EROFS  # type: ignore[misc]
