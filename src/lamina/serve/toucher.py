"""Ask the kernel for the pages of a start as they arrive, before the program is started.

The server of the image says which parts of which files have come.  Somebody else, who serves
nothing, asks the kernel to read them: reading through a mount that one serves could wait for
oneself for ever.  The kernel then has them when the program is started, and its read-ahead, which
does not know which pages came, asks for no others.  That somebody is a process of its own, since a
process that waits in the kernel for a page can only be left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import termios
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from lamina.linux.openat2 import open_file_below

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.content.start_pages import FileExtent, StartPages

WINDOW_BYTES: Final = 128 << 10
"""The kernel reads no more for one request, whatever it was asked for."""

MOST_OPEN: Final = 256

_MOST_FDS: Final = 1 << 20
_END_S: Final = 2.0
"""What the kernel does not let end by then ends when its page has come, or its server has gone."""


def follow_start(image: LazyImage, write_end: int) -> None:
    """Write to a pipe what of the start of a mounted image arrives, in a thread of its own, and
    close it when nothing more will.  Does nothing for a descriptor below 0.
    """
    pages = image.start_pages
    if write_end < 0:
        return
    if pages is None:
        os.close(write_end)
        return
    threading.Thread(
        target=_feed, args=(pages, write_end), name="lamina-start-feed", daemon=True
    ).start()


def _feed(pages: StartPages, write_end: int) -> None:
    with contextlib.suppress(OSError), open(write_end, "wb") as pipe:
        seen = 0
        while (extents := pages.wait_arrived(seen)) is not None:
            seen += 1
            pipe.write(b"".join(map(_encode, extents)))
            pipe.flush()


def _encode(extent: FileExtent) -> bytes:
    name = os.fsdecode(extent.path)
    return json.dumps([name, extent.offset, extent.size_bytes]).encode("ascii") + b"\n"


class StartGate:
    """Keeps a program from starting until the kernel was asked for what it reads first.

    Made by a process of one thread, which then forks the server and calls :meth:`serve` in it.  One
    that is not wanted is open and costs nothing.
    """

    def __init__(self, *, is_wanted: bool = True) -> None:
        self._read_end, self._write_end = os.pipe() if is_wanted else (-1, -1)
        self._pid = 0

    def serve(self) -> int:
        """In the server: return the pipe's end for :func:`follow_start`."""
        if self._read_end >= 0:
            os.close(self._read_end)
        return self._write_end

    def wait(self, folder: str) -> None:
        """Return when the kernel was asked for all that arrived and nothing more will come, or when
        that has taken :func:`~lamina.content.start_pages.longest_wait_s`.

        *folder* is where the server has mounted the image.  Nobody is forked unless something
        arrives.
        """
        if self._write_end < 0:
            return
        from lamina.content.start_pages import longest_wait_s

        os.close(self._write_end)
        self._write_end = -1
        end_s = time.monotonic() + longest_wait_s()
        if has_data(self._read_end, end_s):
            self._pid = os.fork()
            if self._pid == 0:
                _touch_and_exit(self._read_end, folder)
            self._join(end_s)

    def _join(self, end_s: float) -> None:
        fd = os.pidfd_open(self._pid)
        try:
            if _is_readable(fd, end_s):
                pid, self._pid = self._pid, 0
                os.waitpid(pid, 0)
        finally:
            os.close(fd)

    def close(self) -> None:
        """End who asks: its open files would keep the mount busy.  May be called again."""
        for fd in (self._read_end, self._write_end):
            if fd >= 0:
                os.close(fd)
        self._read_end = self._write_end = -1
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._join(time.monotonic() + _END_S)


def has_data(pipe: int, end_s: float) -> bool:
    """Tell whether something can be read of a pipe before *end_s*, and not its end."""
    waiting = bytearray(4)
    if not _is_readable(pipe, end_s):
        return False
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return any(waiting)


def _is_readable(fd: int, end_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(end_s - time.monotonic(), 0) * 1000))


def _touch_and_exit(read_end: int, folder: str) -> None:
    try:
        # Among them the socket by which the server notices the end of our parent.
        os.closerange(3, read_end)
        os.closerange(read_end + 1, _MOST_FDS)
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with open(read_end, "rb") as pipe:
            touch(root, pipe)
    finally:
        os._exit(0)


def touch(root: int, lines: Iterable[bytes]) -> int:
    """Ask for the ranges that *lines* say, of files below the folder *root*; return how many bytes.

    Whatever a line says, nothing but regular files below the folder is opened.
    """
    fds: dict[str, int] = {}
    total = 0
    for line in lines:
        path, offset, size_bytes = json.loads(line)
        if path not in fds:
            if len(fds) >= MOST_OPEN:
                while fds:
                    os.close(fds.popitem()[1])
            fds[path] = open_file_below(root, path.lstrip("/"))
        if fds[path] < 0:
            del fds[path]
            continue
        for start in range(offset, offset + size_bytes, WINDOW_BYTES):
            window = min(WINDOW_BYTES, offset + size_bytes - start)
            with contextlib.suppress(OSError):
                os.posix_fadvise(fds[path], start, window, os.POSIX_FADV_WILLNEED)
                total += window
    for fd in fds.values():
        os.close(fd)
    return total
