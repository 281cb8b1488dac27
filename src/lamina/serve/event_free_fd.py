"""Descriptors of watched files that raise no events."""

from __future__ import annotations

import errno
import os
import select
import time
from contextlib import suppress
from typing import Final

from lamina.errors import KernelError
from lamina.linux import fanotify
from lamina.linux.syscalls import from_os_error
from lamina.posix.threads import start_thread
from lamina.serve.device import fd_path
from lamina.serve.fanotify_answer import answer

_OWN_EVENT_S: Final = 3.0
_PROVOKED_MS: Final = 50
_BEYOND_ANY_BLOB: Final = 1 << 46
"""Where the provoked read is; the event has it, though there is nothing to read."""


def event_free_fd(group: int, fd: int, path: str, early: list[fanotify.Event]) -> int:
    """Return a descriptor of the file behind ``fd``, which ``group`` watches, for filling it.

    A file that was opened before any group marked it is quiet anyway, but another mount's group may
    have been earlier.  Only the kernel makes descriptors that are quiet for all groups, one for
    each event, so an event is provoked: a read that is then denied.  Without it, a write to the
    cache could wait for an answer that waits for the write.

    Events of others that come meanwhile are added to ``early``.  Raises KernelError.
    """
    deadline = time.monotonic() + _OWN_EVENT_S
    while (event := _provoke(group, fd, early)) is None:
        if time.monotonic() > deadline:
            raise KernelError(
                f"the kernel asks someone else before reads of {path}, who denies them",
                hint="unmount the broken mounts of this image, which `lamina mounts` lists",
            )
    answer(group, event.fd, errno.EIO)
    return event.fd


def _provoke(group: int, fd: int, early: list[fanotify.Event]) -> fanotify.Event | None:
    """Return the event of a read of our own, None if another group has denied the read."""
    wanted = os.fstat(fd)
    reader = start_thread(lambda: _read_far_away(fd), "lamina-far-read")
    # Not select(2), which takes no descriptor beyond 1023.
    poll = select.poll()
    poll.register(group, select.POLLIN)
    while reader.is_alive() or poll.poll(0):
        if not poll.poll(_PROVOKED_MS):
            continue
        event = _read_event(group)
        status = os.fstat(event.fd)
        same_file = (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino)
        if same_file and event.pid == os.getpid() and event.offset >= _BEYOND_ANY_BLOB:
            return event
        early.append(event)
    return None


def _read_event(group: int) -> fanotify.Event:
    try:
        return next(fanotify.parse_events(os.read(group, fanotify.EVENT_BYTES)))
    except OSError as error:
        # EMFILE above all: the kernel has no number for the event's descriptor.
        what = "cannot take an event of a fanotify group"
        raise from_os_error(error, "read", what) from error


def _read_far_away(fd: int) -> None:
    # Opened anew: whether a descriptor raises events is settled when it is opened.
    again = os.open(fd_path(fd), os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):
        os.pread(again, 1, _BEYOND_ANY_BLOB)
    os.close(again)
