"""The one family of errors that Lamina raises.

Every error a user can meet is a subclass of :class:`Error`.  It carries one sentence that says what
is wrong and where, a ``hint`` that says what to do about it (or None), and the exit code of the
command line.
The codes are stable: scripts may rely on them.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final

_HINTS: Final = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "the quota is used up: free some space, or have it raised",
    errno.EROFS: "the file system is mounted read-only: remount it, or choose another place",
    errno.EACCES: "it is not for this user: become one who may use it, or choose another place",
    errno.EPERM: "this user may not do that: become one who may, or choose another place",
    errno.EMFILE: "too many files are open in this process: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: raise fs.file-max",
    errno.ENOMEM: "memory or address space ran out: raise the limit (ulimit -v), or stop something",
    errno.EIO: "the disk fails: see what the kernel says of it (dmesg)",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOTDIR: "something on the way there is no folder: choose another place",
    errno.ELOOP: "a link there leads in a circle: choose another place",
    errno.ENOLCK: "the file system gives no locks: choose another place",
}


def os_hint(error: OSError) -> str | None:
    """Return what to do about an error of the operating system, None if that is not clear."""
    return _HINTS.get(error.errno or 0)


class Error(Exception):
    """Root of all errors.  ``str(error)`` is one sentence; ``hint`` is what to do next."""

    exit_code: ClassVar[int] = 1
    errno: ClassVar[int] = errno.EIO
    """What a reader of a mounted image gets when this error ends its read."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            # What a traceback shows; the command line prints the hint by itself.
            self.add_note(f"hint: {hint}")


class UsageError(Error):
    """The request itself makes no sense: a malformed reference, an impossible option."""

    exit_code = 2
    errno = errno.EINVAL


class FormatError(Error):
    """Bytes that are not what they claim to be: a damaged or hostile image, tar, table or
    manifest.
    """

    exit_code = 3


class IntegrityError(Error):
    """Bytes that are well-formed or not, but are not the ones that were promised: digest or length
    mismatch.
    """

    exit_code = 4


class FetchError(Error):
    """A registry or another source did not deliver.

    ``transient`` says that time may cure it, so that asking again makes sense; ``retry_after_s`` is
    how long the source asked to be left alone, 0 if it did not.  ``final`` says that to ask again
    is of no use.
    """

    exit_code = 5
    transient: ClassVar[bool] = False
    final: ClassVar[bool] = False
    retry_after_s: float = 0.0


class AuthError(FetchError):
    """A registry refused the credentials, or wants some."""

    exit_code = 6
    final = True
    errno = errno.EACCES


class NotFoundError(Error):
    """A path, image, blob or mount that is not there."""

    exit_code = 7
    errno = errno.ENOENT


class KernelError(Error):
    """The kernel refused or lacks something; the message has the system call and errno."""

    exit_code = 8


class UnsupportedError(Error):
    """A feature that this build or machine does not have; the hint names the extra or kernel
    version.
    """

    exit_code = 9
    errno = errno.EOPNOTSUPP


class StoreError(Error):
    """The node store cannot be written or read: full, read-only, owned by someone else."""

    exit_code = 10
    errno = errno.ENOSPC


class DifferenceError(Error):
    """A comparison found a difference: ``lamina check`` of two trees."""

    exit_code = 11


class TrustError(Error):
    """A signature, key, policy or attestation does not allow this image."""

    exit_code = 12
    errno = errno.EACCES
