"""The FUSE device: opening it, mounting it as root or through fusermount3, ending it.

``include/uapi/linux/fuse.h``.  A connection ends when the last descriptor of its device is closed:
readers then get ENOTCONN or ECONNABORTED, never data.  It ends for the server (reads of the device
fail with ENODEV) when the last user of the mount is gone.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Sequence

from lamina.linux import mount
from lamina.linux.syscalls import from_os_error

_FUSERMOUNT = ("fusermount3", "fusermount")


def open_device() -> int:
    """Open ``/dev/fuse``: a connection that has no mount yet."""
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(
            error,
            "open",
            "cannot open /dev/fuse",
            hint="the kernel needs CONFIG_FUSE_FS, and users need access to /dev/fuse",
        ) from error


def create_fuse_mount(
    device: int, options: Sequence[tuple[str, str | None]], attributes: int
) -> int:
    """Mount ``device`` as root, like :func:`lamina.linux.mount.create_mount` without a place.

    Returns before INIT is answered: the kernel sends it while the mount is made, so a server must
    be reading ``device`` by the time of the first access.  ``options`` come after fd, rootmode,
    user_id and group_id.
    """
    base: list[tuple[str, str | None]] = [
        ("fd", str(device)),
        ("rootmode", "40000"),
        ("user_id", str(os.geteuid())),
        ("group_id", str(os.getegid())),
    ]
    return mount.create_mount("fuse", "lamina", [*base, *options], attributes)


def mount_unprivileged(mountpoint: str, options: Sequence[str]) -> int:
    """Mount through the set-uid helper fusermount3 and return the device it sends over a socket.

    Works for any user who may write to ``mountpoint``; the helper adds nosuid and nodev.  Raises
    SyscallError with the helper's own words.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = [_helper(), "-o", ",".join(options), "--", mountpoint]
        done = subprocess.run(
            command,
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            check=False,
        )
        theirs.close()
        device = _receive_descriptor(ours)
    if device is None:
        words = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        error = OSError(1, words or "no descriptor came back")
        raise from_os_error(
            error,
            _FUSERMOUNT[0],
            f"cannot mount at {mountpoint} ({words})",
            hint="the folder must belong to you and /dev/fuse must be usable",
        )
    return device


def _receive_descriptor(end: socket.socket) -> int | None:
    descriptors = array.array("i")
    _, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: descriptors.itemsize])
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    return None


def unmount_unprivileged(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount a FUSE mount of one's own through fusermount3."""
    command = [_helper(), "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        code = 16 if "busy" in words else 1
        raise from_os_error(OSError(code, words), _FUSERMOUNT[0], f"cannot unmount {mountpoint}")


def _helper() -> str:
    import shutil

    for name in _FUSERMOUNT:
        if path := shutil.which(name):
            return path
    raise from_os_error(
        OSError(2, "not found"),
        _FUSERMOUNT[0],
        "cannot mount without root",
        hint="install the package fuse3",
    )


def is_connected(device: int) -> bool:
    """Return whether the mount of an open device is there: False before it is made, and when the
    connection is over.
    """
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)


def abort_connection(device_number: int, device: int | None = None) -> bool:
    """End a FUSE connection, named by the ``st_dev`` of its mount: who waits gets ECONNABORTED.

    ``device`` is its device, if the caller has that open: when a connection has ended by itself,
    the next mount of whomever may get its number.  Needs root; works on mounts without a place in
    the tree.  Return False if there is no such connection any more.
    """
    control = mount.create_mount("fusectl", None, [])
    try:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(f"{os.minor(device_number)}/abort", os.O_WRONLY, dir_fd=control)
            try:
                # What was opened stays with one connection: that of the device, if it lives now.
                if device is not None and not is_connected(device):
                    return False
                os.write(fd, b"1")
            finally:
                os.close(fd)
            return True
    finally:
        os.close(control)
    return False
