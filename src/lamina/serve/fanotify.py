"""Device ``fanotify``: the kernel reads the cache files themselves and asks before it does.

Fastest where an image becomes complete while it is mounted: a complete blob loses its mark, and no
process of ours is involved in its reads any more.  What it needs to fail closed is somebody who
keeps the fanotify group, see :mod:`lamina.serve.holder`.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from lamina.errors import Error, KernelError
from lamina.image.lazy_blob import LazyBlob
from lamina.linux import fanotify
from lamina.linux.mount import SuperblockWatch
from lamina.serve.device import fd_path
from lamina.serve.fanotify_answer import answer, outcome
from lamina.serve.holder import Holder
from lamina.serve.quiet import quiet_descriptor

LOG: Final = logging.getLogger("lamina")

THREADS: Final = 16
"""How many readers can wait for the network at a time; also bounds the events' descriptors."""

PAUSE_S: Final = 0.05


class FanotifyDevice:
    """Serves the incomplete ones of ``blobs``, which stay the caller's.

    Needs CAP_SYS_ADMIN, Linux 6.14, and the node store on ext4, xfs or btrfs.  The kernel reads the
    cache files at moments that nobody is told of, so nothing is evicted from them while mounted.
    """

    name = "fanotify"
    ended_fd = None
    connection = 0

    def __init__(self, blobs: Sequence[LazyBlob]) -> None:
        self._blobs = blobs
        self._by_inode: dict[tuple[int, int], LazyBlob] = {}
        self._marked: set[tuple[int, int]] = set()
        self._unmarking = threading.Lock()
        self._group = -1
        self._stop = -1
        self._early: list[fanotify.Event] = []
        self._threads: list[threading.Thread] = []
        self._holder: Holder | None = None
        self._held: list[LazyBlob] = []
        self._watch = SuperblockWatch("erofs")

    def prepare(self) -> Sequence[str]:
        """Hold all blobs and mark the incomplete ones."""
        self._watch = SuperblockWatch("erofs")
        for blob in self._blobs:
            # A reader goes on after the answer to its event, when nobody can tell whether it has
            # read; and complete blobs are read without an event.
            blob.hold()
            self._held.append(blob)
            blob.hold_through(self._watch)
        lazy = [blob for blob in self._blobs if not blob.complete]
        if lazy:
            self._watch.require()
            self._group = fanotify.create_group()
            self._stop = os.eventfd(0, os.EFD_CLOEXEC)
            self._holder = Holder(self._group, sorted(self._watch.before))
            for blob in lazy:
                fanotify.add_mark(self._group, blob.fd)
                status = os.fstat(blob.fd)
                self._by_inode[status.st_dev, status.st_ino] = blob
            self._marked = set(self._by_inode)
            for blob in lazy:
                self._quieten(blob)
        return [fd_path(blob.fd) for blob in self._blobs]

    def _quieten(self, blob: LazyBlob) -> None:
        """Put a descriptor that raises no events in the place of the blob's own."""
        quiet = quiet_descriptor(self._group, blob.fd, str(blob.path), self._early)
        os.dup2(quiet, blob.fd, inheritable=False)
        os.close(quiet)

    def private_fds(self) -> Sequence[int]:
        """None: a copy of the group in a fork only makes readers wait a little longer."""
        return []

    def serve(self) -> None:
        """Start the threads."""
        if self._group < 0:
            return
        for number in range(THREADS):
            thread = threading.Thread(target=self._run, name=f"lamina-fan-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def mounted(self) -> None:
        """Tell the holder, and the holds of the cache files, what to watch."""
        self._watch.mounted()
        if self._holder is not None:
            self._holder.watch(self._watch.paths)
        for blob in self._blobs:
            blob.hold_through(self._watch)

    @property
    def in_use(self) -> bool:
        """Whether the superblock lives."""
        return self._watch.alive

    def _run(self) -> None:
        with select.epoll() as poll:
            # Exclusive: one event wakes one thread.
            poll.register(self._group, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            poll.register(self._stop, select.EPOLLIN)
            while (event := self._next_early()) is not None:
                self._answer(event)
            while True:
                if any(fd == self._stop for fd, _ in poll.poll()):
                    return
                for event in self._read_events():
                    self._answer(event)

    def _read_events(self) -> Sequence[fanotify.Event]:
        try:
            return list(fanotify.parse_events(os.read(self._group, fanotify.EVENT_BYTES)))
        except BlockingIOError:
            pass
        except (OSError, Error):
            # The kernel had no descriptor for it, and told its reader so.
            LOG.exception("an event of a fanotify group cannot be read")
            time.sleep(PAUSE_S)
        return ()

    def _next_early(self) -> fanotify.Event | None:
        try:
            return self._early.pop()
        except IndexError:
            return None

    def _answer(self, event: fanotify.Event) -> None:
        answer(self._group, event.fd, outcome(lambda: self._fill(event)))
        with suppress(OSError):
            os.close(event.fd)

    def _fill(self, event: fanotify.Event) -> None:
        status = os.fstat(event.fd)
        key = status.st_dev, status.st_ino
        blob = self._by_inode.get(key)
        if blob is None or status.st_size != blob.size_bytes:
            raise KernelError("fanotify tells of a file that is no blob of the image")
        if not event.size_bytes:
            raise KernelError("the kernel does not say which range of a cache file it wants")
        blob.ensure(event.offset, event.size_bytes)
        if blob.complete:
            self._unmark(key, blob)

    def _unmark(self, key: tuple[int, int], blob: LazyBlob) -> None:
        with self._unmarking:
            if key in self._marked:
                self._marked.discard(key)
                # One that stays asks for what is there.
                with suppress(KernelError):
                    fanotify.remove_mark(self._group, blob.fd)

    def abandon(self) -> None:
        """Leave the group to the holder, which denies all reads until the superblock is gone."""
        self._end(handed_over=True)

    def close(self) -> None:
        """Let go of the group; may be called again."""
        self._end(handed_over=False)

    def _end(self, *, handed_over: bool) -> None:
        if self._group >= 0:
            os.eventfd_write(self._stop, 1)
            for thread in self._threads:
                thread.join()
        if self._holder is not None:
            self._holder.close(handed_over=handed_over)
            self._holder = None
        while self._held and not handed_over:
            self._held.pop().let_go()
        if self._group >= 0:
            os.close(self._stop)
            os.close(self._group)
            self._group = -1
