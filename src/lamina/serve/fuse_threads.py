"""Threads that answer FUSE connections: those of one mount, or of all mounts of a service.

An idle connection costs an entry in an epoll instance, and no thread.  A thread that has read a
request lets the kernel wake another one for the next, and only then answers: so as many work as
there is work, and no request waits for a thread that hands it on.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import threading
from typing import Final, Protocol

from lamina.errors import KernelError
from lamina.posix.threads import start_thread
from lamina.wire import fuse

LOG: Final = logging.getLogger("lamina")

FIRST_THREADS: Final = 4
KEPT_THREADS: Final = 16
"""So many stay while there is nothing to do."""
MOST_THREADS: Final = 512
"""Of all connections of a process, most of which wait for the network."""
MAX_READ_BYTES: Final = 128 * 1024
"""The most that one READ asks for; also how far the kernel may read ahead."""

_READY: Final = select.EPOLLIN | select.EPOLLONESHOT


class Buffers:
    """What a thread reads requests into, and makes answers in."""

    def __init__(self) -> None:
        # Shared, and touched: a page that had to be copied after a fork could not be when this
        # process is being killed, and the kernel would fail the request.
        self.request = memoryview(mmap.mmap(-1, fuse.SMALLEST_READ_BUFFER_BYTES))
        self.request[:] = bytes(len(self.request))
        # Anonymous memory, of which only what is used becomes resident.  It is not closed: the
        # traceback of an error may still have a view of it.
        self.scratch = memoryview(mmap.mmap(-1, MAX_READ_BYTES))


class Connection(Protocol):
    """What the threads answer."""

    def serve_one(self, buffers: Buffers) -> None:
        """Read a request, have :meth:`FuseThreads.listen` called for the next, and answer it."""


class FuseThreads:
    """Answers connections until they are taken away; owns nothing but its threads."""

    def __init__(self, most: int = MOST_THREADS) -> None:
        """Start no thread yet; there will be up to ``most``."""
        self._most = most
        self._poll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._stop, select.EPOLLIN)
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._threads: set[threading.Thread] = set()
        self._waiting = 0
        self._short = False

    @property
    def thread_count(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def add(self, device: int, connection: Connection) -> None:
        """Answer a connection from now on.  Raises KernelError if there is no thread for it."""
        with self._lock:
            while len(self._threads) < min(FIRST_THREADS, self._most) and self._start():
                pass
            if not self._threads:
                raise KernelError(
                    "no thread can be started to answer reads",
                    hint="raise the limits of processes (ulimit -u) and address space (ulimit -v)",
                )
            self._connections[device] = connection
        self._poll.register(device, _READY)

    def listen(self, device: int) -> None:
        """Wait for the next request of a connection, of which one was read."""
        with self._lock:
            if device in self._connections:
                self._poll.modify(device, _READY)
                self._relieve()

    def relieve(self) -> None:
        """Have a thread wait for other connections, before the caller's waits for what it answers.

        A thread that has been woken counts as waiting until it runs, so each must call this itself.
        """
        with self._lock:
            self._relieve()

    def remove(self, device: int) -> None:
        """Answer a connection no more; what has begun goes on.  May be called again."""
        with self._lock:
            if self._connections.pop(device, None) is not None:
                self._poll.unregister(device)

    def close(self) -> None:
        """End all threads, which may be answering; may be called again."""
        if self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join()
        self._poll.close()
        os.close(self._stop)
        self._stop = -1

    def _relieve(self) -> None:
        if not self._waiting and len(self._threads) < self._most:
            self._start()

    def _start(self) -> bool:
        """Start a thread; those there are go on alone if there can be no more."""
        number = len(self._threads)
        try:
            thread = start_thread(self._run, f"lamina-fuse-{number}")
        except KernelError as error:
            if not self._short:
                LOG.warning("%d threads answer FUSE: %s", number, error)
            self._short = True
            return False
        self._threads.add(thread)
        self._short = False
        return True

    def _run(self) -> None:
        buffers = Buffers()
        while (device := self._next()) != self._stop:
            connection = self._connections.get(device)
            if connection is not None:
                try:
                    connection.serve_one(buffers)
                except Exception:
                    # A thread that ended would be missed.
                    LOG.exception("answering a FUSE connection failed")

    def _next(self) -> int:
        """Wait for a connection that has a request; the stop where this thread is to end."""
        with self._lock:
            if self._waiting >= KEPT_THREADS:
                self._threads.discard(threading.current_thread())
                return self._stop
            self._waiting += 1
        try:
            return self._poll.poll(-1, 1)[0][0]
        finally:
            with self._lock:
                self._waiting -= 1
