"""Making the kernel EROFS mount of an image over its blob device."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple, NoReturn

from lamina.errors import Error, KernelError
from lamina.linux.mount import (
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    MountEntry,
    SuperblockWatch,
    attach_mount,
    create_mount,
    topmost_mount,
    unmount,
)
from lamina.serve.device import BlobDevice
from lamina.serve.readahead import shorten_readahead
from lamina.serve.reported_error import decode_error, encode_error
from lamina.serve.state import mounting_lock

_DONE = b"mounted"


class ErofsMount(NamedTuple):
    """What to mount: the metadata file, where, with which ``MOUNT_ATTR_*``, and whether blobs are
    incomplete.
    """

    bootstrap: str
    mountpoint: str
    attributes: int
    lazy: bool


def mount_erofs(target: ErofsMount, device: BlobDevice) -> None:
    """Mount ``target`` with the blobs of ``device`` (Linux 6.12 with file-backed mounts, root).

    The kernel opens the blobs while it mounts, and a FUSE blob is opened by asking us.  So a fork
    mounts: were it a thread of this process, and the process killed at that moment, the kernel
    would wait for its own answer for ever, with a lock held that stops ``sync`` everywhere.

    Raises SyscallError or KernelError; the caller then closes the device.
    """
    with mounting_lock() as lock:
        before = topmost_mount(target.mountpoint)
        watch = SuperblockWatch("erofs")
        paths = device.prepare()
        lock.note_connection(device.connection)
        private = device.private_fds()
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            _mount_and_exit(target, paths, private, write_end)
        os.close(write_end)
        with _undone(target, device, before):
            report = _report_of(pid, read_end, device)
            if not report:
                raise _killed(target)
            if report == _DONE:
                device.mounted()
        if report != _DONE:
            raise decode_error(report)
        watch.mounted()
    if target.lazy:
        shorten_readahead(watch.paths)


def _report_of(pid: int, read_end: int, device: BlobDevice) -> bytes:
    """Answer the mounting fork, and return what it said when it has ended: nothing if it was
    killed.
    """
    try:
        with open(read_end, "rb") as pipe:
            device.serve()
            return pipe.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.waitpid(pid, 0)


def create_erofs(bootstrap: str, paths: Sequence[str], attributes: int) -> int:
    """Return the descriptor of a mount without a place yet, made in this process, which must not be
    the one that serves ``paths``, the files of the blobs.  Raises SyscallError.
    """
    options: list[tuple[str, str | None]] = [("device", path) for path in paths]
    return create_mount("erofs", bootstrap, options, attributes)


@contextlib.contextmanager
def _undone(target: ErofsMount, device: BlobDevice, before: MountEntry | None) -> Iterator[None]:
    """Take a mount that was made away again if the block fails; who was quick enough to use it gets
    errors.
    """
    try:
        yield
    except BaseException:
        if topmost_mount(target.mountpoint) != before:
            with contextlib.suppress(Error):
                unmount(target.mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW)
        device.abandon()
        raise


def _killed(target: ErofsMount) -> KernelError:
    return KernelError(f"the process that mounts {target.mountpoint} was killed")


def _mount_and_exit(
    target: ErofsMount, paths: Sequence[str], private: Sequence[int], write_end: int
) -> NoReturn:
    """Mount, say how it went, and end: as little Python as possible after a fork of threads."""
    report = b""
    try:
        for fd in private:
            os.close(fd)
        mount_fd = create_erofs(target.bootstrap, paths, target.attributes)
        attach_mount(mount_fd, target.mountpoint)
        report = _DONE
    except Error as error:
        report = encode_error(error)
    finally:
        os.write(write_end, report)
        os._exit(0)
