"""Files and directories of the store: private to their owner, appearing whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import calcsize
from typing import ClassVar, Final

from lamina.errors import StoreError, os_hint
from lamina.posix.write import write_all

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

# linux/fs.h: _IOR('v', 1, long), though an int is written.
FS_IOC_GETVERSION: Final = 2 << 30 | calcsize("l") << 16 | ord("v") << 8 | 1


class StoreAccessError(StoreError):
    """The store cannot be used for another reason than that it is full."""

    errno: ClassVar[int] = errno.EIO


def store_error(what: str, error: OSError) -> StoreError:
    """Say what could not be done in the store, with the reason of the operating system."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = os_hint(error)
    if is_full:
        hint = f"{hint}: `lamina gc`, or another place with --store or LAMINA_STORE"
    elif hint is not None and hint.endswith("another place"):
        hint = f"{hint} with --store or LAMINA_STORE"
    kind = StoreError if is_full else StoreAccessError
    return kind(f"cannot {what}: {error.strerror or error}", hint=hint)


@contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into the StoreError of :func:`store_error`."""
    try:
        yield
    except OSError as error:
        raise store_error(what, error) from error


def make_private_directory(path: Path) -> None:
    """Create *path* (and what is missing above it); refuse one that others could write to.

    What is in the store is trusted without being verified again, so nobody else may change it.
    """
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        status = path.stat()
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreAccessError(
            f"cannot create the store directory {path}: a file is in its place",
            hint="choose a folder with --store or LAMINA_STORE",
        ) from error
    except FileNotFoundError as error:
        raise StoreAccessError(
            f"cannot create the store directory {path}: {error.strerror}",
            hint="choose a folder with --store or LAMINA_STORE, or correct HOME",
        ) from error
    except OSError as error:
        raise store_error(f"create the store directory {path}", error) from error
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StoreError(
            f"the store directory {path} belongs to user {status.st_uid} with mode "
            f"{status.st_mode & 0o7777:04o}, so its content cannot be trusted",
            hint="make it owned by you with mode 0700, or set LAMINA_STORE",
        )


def inode_generation(fd: int) -> int:
    """Return what tells a file from an earlier one that had the same inode number; 0 if unknown.

    ext4 gives a number that has become free to the next new file.
    """
    answer = bytearray(calcsize("l"))
    try:
        fcntl.ioctl(fd, FS_IOC_GETVERSION, answer)
    except OSError:
        return 0
    return int.from_bytes(answer[:4], sys.byteorder)


class NewFile:
    """A file under construction, see :func:`new_file`."""

    def __init__(self, fd: int, temporary: Path) -> None:
        self._fd = fd
        self._temporary = temporary
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*.  Raises StoreError."""
        try:
            write_all(self._fd, data, self._size)
        except OSError as error:
            raise store_error(f"write {self._temporary}", error) from error
        self._size += len(memoryview(data).cast("B"))

    def commit(self, path: Path) -> None:
        """Let the file appear at *path*, in place of one that is there.  Raises StoreError."""
        try:
            os.fsync(self._fd)
            os.rename(self._temporary, path)
        except OSError as error:
            raise store_error(f"write {path}", error) from error


@contextmanager
def new_file(directory: Path) -> Iterator[NewFile]:
    """Give a nameless file to write and commit; without a commit it is gone after the block.

    A reader, also after a power cut, sees all of a committed file or the one before (the data is
    on disk before the name; the name itself may be lost again).  Raises StoreError.
    """
    temporary = directory / f".new.{os.getpid()}.{os.urandom(8).hex()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise store_error(f"create a file in {directory}", error) from error
    try:
        yield NewFile(fd, temporary)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Make *path* hold *data*, all of it or nothing (see :func:`new_file`).  Raises StoreError."""
    with new_file(path.parent) as file:
        file.write(data)
        file.commit(path)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """Give the descriptor of a new file that is put in place of *path* after the block, unless that
    raises; who has the old one open keeps it.

    Nothing is flushed: after a power cut the file may be damaged.  Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        yield fd
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have the file at *path*, which is made if need be, locked against everybody else (flock).

    Raises StoreError.
    """
    with store_errors(f"lock {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        with store_errors(f"lock {path}"):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
